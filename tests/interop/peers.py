"""Independent libp2p peers in processes of their own, driven by JSON lines; what they need is built once, in .cache/.

A test that needs one skips, naming what is missing, where its tool chain or the package registry cannot be had.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "interop"
BUILD_TIME = 900.0


class Peer:
    """`said` is what it said of itself."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.said: dict[str, Any] = {}
        self._lines = b""
        self._number = 0

    async def hello(self) -> None:
        self.said = json.loads(await self._line())

    @property
    def peer_id(self) -> str:
        return str(self.said["peer_id"])

    @property
    def addresses(self) -> list[str]:
        return list(self.said["addresses"])

    async def call(self, command: str, **arguments: Any) -> Any:
        """Run one command; raises AssertionError with what the peer says of its failure."""
        self._number += 1
        assert self.process.stdin is not None
        line = json.dumps({"id": self._number, "command": command, **arguments}) + "\n"
        await self.process.stdin.send_all(line.encode())
        while (answer := json.loads(await self._line())).get("id") != self._number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    async def _line(self) -> bytes:
        assert self.process.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._lines:
                data = await self.process.stdout.receive_some()
                assert data, "the peer's process ended"
                self._lines += data
        line, _, self._lines = self._lines.partition(b"\n")
        return line


@asynccontextmanager
async def open_peer(command: Sequence[str], cwd: Path) -> AsyncIterator[Peer]:
    pipe = subprocess.PIPE
    start = partial(trio.run_process, command, stdin=pipe, stdout=pipe, check=False, cwd=cwd)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(start)
        try:
            peer = Peer(process)
            await peer.hello()
            yield peer
        finally:
            process.kill()


def js_folder() -> Path:
    """Where the js-libp2p peer is ready to run."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"js-libp2p needs {tool}")

    def install(folder: Path) -> None:
        _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"], folder)

    return _built("js", install)


def go_folder() -> Path:
    """Where the go-libp2p peer lies, built."""
    if shutil.which("go") is None:
        pytest.skip("go-libp2p needs go")

    def build(folder: Path) -> None:
        _run(["go", "build", "-trimpath", "-o", "peer", "."], folder)

    return _built("go", build)


def _built(name: str, build: Callable[[Path], None]) -> Path:
    """A copy of `name` in the cache, built; another version of its files is another copy."""
    files = sorted(file for file in (HERE / name).iterdir() if file.is_file())
    digest = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()[:16]
    folder = CACHE / f"{name}-{digest}"
    if not folder.exists():
        scratch = CACHE / f".{name}-{digest}-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        for file in files:
            shutil.copy(file, scratch)
        build(scratch)
        scratch.rename(folder)
    return folder


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=BUILD_TIME, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        shutil.rmtree(folder, ignore_errors=True)
        said = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        pytest.skip(f"{' '.join(command[:2])} failed, is there a package registry? {said[-1:] or error}")
