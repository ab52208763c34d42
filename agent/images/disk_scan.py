"""Reads one disk file of the store from its first to its last byte, and tells what it is. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..files import disk_errors_named
from .chunker import chunks
from .index import ChunkIndex, index_chunks

MODE = 0o444

Stamp = tuple[int, int, int]
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class DiskScan:
    """What a disk file is like, in bytes and seconds. `stamp` is None when there is none.

    `index` is None where it cannot be read to its end.
    """

    stamp: Stamp | None
    size: int = 0
    allocated: int = 0
    modified: float = 0.0
    index: ChunkIndex | None = None


def scan_disk(path: Path, on_bytes: OnBytes, folder: Path | None = None) -> DiskScan:
    """`on_bytes` is called with the number of bytes read, often, and raises when nobody waits any more.

    `folder` is as of `SpooledFile`. Raises: InsufficientResources.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return DiskScan(stamp_of(path))
    try:
        seen = os.fstat(fd)
        index = None
        with suppress(OSError, EOFError), disk_errors_named("an index"):
            if stat.S_ISREG(seen.st_mode):
                index = index_chunks(seen.st_size, _counted(chunks(fd, seen.st_size), on_bytes), folder)
        return DiskScan(_stamp(seen), seen.st_size, seen.st_blocks * 512, seen.st_mtime, index)
    finally:
        os.close(fd)


def _counted(found: Iterator[tuple[int, memoryview]], on_bytes: OnBytes) -> Iterator[tuple[int, memoryview]]:
    gathered = 0
    for number, (offset, data) in enumerate(found):
        gathered += len(data)
        if number % 64 == 0:
            on_bytes(gathered)
            gathered = 0
        yield offset, data
    on_bytes(gathered)


def mend_permissions(path: Path) -> bool | None:
    """See to it that the agent owns the disk and nobody can change it.

    None when it was so, else whether it is so now.
    """
    with suppress(FileNotFoundError):
        seen = path.lstat()
        if not stat.S_ISREG(seen.st_mode) or (stat.S_IMODE(seen.st_mode) == MODE and seen.st_uid == os.geteuid()):
            return None
        try:
            os.chown(path, os.geteuid(), -1, follow_symlinks=False)
            path.chmod(MODE)
        except OSError:
            return False
        return True
    return None


def stamp_of(path: Path) -> Stamp | None:
    """What tells whether a file is still the one that was read; None when there is none."""
    try:
        return _stamp(path.lstat())
    except FileNotFoundError:
        return None


def _stamp(seen: os.stat_result) -> Stamp:
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
