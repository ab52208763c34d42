"""An sshd of the benchmark's own on the loopback: what scp and `ssh -L` do on the same machine in the same run."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


@dataclass(frozen=True, slots=True)
class Ssh:
    """Where the server listens, and the options that a client needs."""

    port: int
    options: list[str]

    async def copy(self, source: Path, target: Path) -> None:
        """By scp, from the server."""
        await trio.run_process(["scp", "-q", "-P", str(self.port), *self.options, f"127.0.0.1:{source}", str(target)])

    @asynccontextmanager
    async def forwarded(self, port: int) -> AsyncIterator[int]:
        """A local port that leads to `port` at the server, by `ssh -L`."""
        local = free_port()
        forward = f"127.0.0.1:{local}:127.0.0.1:{port}"
        command = ["ssh", "-N", "-p", str(self.port), "-L", forward, *self.options, "127.0.0.1"]
        async with _running(command, local):
            yield local


@asynccontextmanager
async def open_sshd(folder: Path) -> AsyncIterator[Ssh]:
    """Run an sshd for this user, with keys in `folder`."""
    for name in ("host", "user"):
        await trio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)])
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"Subsystem sftp internal-sftp\n"
    )
    with suppress(PermissionError):
        await trio.Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    options = ["-i", f"{folder}/user", "-F", "none"]
    for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"):
        options += ["-o", option]
    async with _running([str(SSHD), "-D", "-e", "-f", str(config)], port):
        yield Ssh(port, options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@asynccontextmanager
async def _running(command: list[str], port: int) -> AsyncIterator[None]:
    """Run a program from the moment that it listens to the end of the block."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, stderr=subprocess.DEVNULL, check=False)
        process: trio.Process = await nursery.start(start)
        try:
            with trio.fail_after(20):
                while not await _listens(port):  # noqa: ASYNC110 - ssh and sshd do not say when they listen
                    await trio.sleep(0.05)
            yield
        finally:
            process.terminate()


async def _listens(port: int) -> bool:
    try:
        await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
    except OSError:
        return False
    return True
