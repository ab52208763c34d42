"""Raw disks that the image store is making: scratch files, partial disks, and how they are read and sealed."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from ..files import discard
from .signatures import HEAD, is_raw_disk


@dataclass(frozen=True, slots=True)
class Scratch:
    """An open scratch file; `fd` is its descriptor."""

    path: Path
    fd: int


class ScratchFolder:
    """Opens scratch files in a folder, and knows those that are open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_use: set[Path] = set()

    @property
    def in_use(self) -> AbstractSet[Path]:
        """The files that are not leftovers."""
        return self._in_use

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scratch]:
        """A new file that only this store can open; gone at the end unless it was moved to its place."""
        path = self._folder / f"{secrets.token_hex(16)}.raw"
        self._in_use.add(path)  # before it is there: a thread may be removing leftovers
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                yield Scratch(path, fd)
            finally:
                os.close(fd)
                # Freeing gigabytes takes its time: not in the loop's thread.
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(discard, path)
        finally:
            self._in_use.discard(path)


def is_recognised(path: Path) -> bool:
    """Return whether the first sector of a disk shows that it is one."""
    with path.open("rb") as disk:
        return is_raw_disk(disk.read(HEAD))


def open_partial(path: Path) -> int:
    """Return a descriptor of a partial disk, new or left by an earlier attempt."""
    with suppress(FileNotFoundError):
        path.chmod(0o600)  # a crash may have come right before it got its place
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def seal(fd: int) -> int:
    """Make a finished disk read-only and durable; return the bytes of space it takes."""
    os.fchmod(fd, 0o444)
    os.fsync(fd)
    return os.fstat(fd).st_blocks * 512


def cancellable(found: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """In a worker thread: raises when the task that waits for it is cancelled."""
    for number, item in enumerate(found):
        if number % 64 == 0:
            trio.from_thread.check_cancelled()
        yield item
