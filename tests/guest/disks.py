"""The disks of the test guests.

`tick` prints `tick 0001`, `tick 0002`, … on its serial line, 18.2 times a second. The count lives in a register: it
goes on through save, snapshot and migration and starts again with any boot. It needs 16 MB of memory, boots in 0.3 s.
`tiny` is the product's own demonstration guest. Packages are fetched once and kept in `.cache/guests`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from twinshare.agent.images.tiny.build import build_tiny
from twinshare.protocols.operation import Progress

CACHE = Path(__file__).parents[2] / ".cache" / "guests"

# The source is in shared notes of the project: at 0 the code, at 510 the signature of a boot sector.
_TICK = bytes.fromhex(
    "31c08ed88ed0bc007c6631dbfbf443be457ce82000b9040089ddc1c50489e8240f04303c3976020427e81400e2ecb00a"
    "e80d00ebd8ac84c07405e80300ebf6c3baf803eec37469636b2000"
)


def tick_disk() -> bytes:
    """A raw disk of 1 MiB: a BIOS does not boot from less on virtio."""
    return (_TICK.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


async def tiny_disk() -> Path:
    """The raw disk of `tiny`, built on first use; its name changes with the packages it is made of."""
    await trio.Path(CACHE).mkdir(parents=True, exist_ok=True)
    async with _alone(CACHE / "lock"):
        return await build_tiny(CACHE, _quiet)


def _quiet(_progress: Progress) -> None:
    return


@asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """One process builds at a time; the lock is the kernel's and goes with the process."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await trio.to_thread.run_sync(fcntl.flock, fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
