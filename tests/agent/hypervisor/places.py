"""Where tests keep a private libvirtd: a short directory of an unprivileged user, without walls."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio


class PlainProcess:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def close(self) -> None:
        self._process.returncode = self._process.returncode or 0  # it may live on: no warning wanted


class PlainPlace:
    kind = "plain"

    def __init__(self, path: Path, user: str | None) -> None:
        self.path = path
        self.user = user

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> PlainProcess:
        with stderr.open("ab") as words:
            return PlainProcess(
                subprocess.Popen(  # noqa: ASYNC220 - it must outlive the nursery
                    argv,
                    env=dict(env),
                    user=self.user,
                    group=self.user and _group(self.user),
                    extra_groups=[] if self.user else None,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    start_new_session=True,
                )
            )

    async def dial(self, port: int) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port)


def _group(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


@contextmanager
def plain_place() -> Iterator[PlainPlace]:
    """A place that is gone afterwards."""
    user = "nobody" if os.geteuid() == 0 else None
    path = Path(tempfile.mkdtemp(prefix="ts-"))
    try:
        (path / "vms").mkdir()
        path.chmod(0o755)
        if user is not None:
            shutil.chown(path / "vms", user)
        yield PlainPlace(path, user)
    finally:
        shutil.rmtree(path)
