"""A disk that is being put together from chunks: it may be left at any instant and be taken up again.

There is no journal: what is in the file is hashed and compared with the index. Every chunk is checked before it is
written, so a disk without gaps is the one that the index stands for. All of it is blocking, for worker threads.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from .index import BadIndexError, ChunkIndex
from .intake import write_all

SUFFIX = ".pull"
MAX_AGE = 7 * 86400.0
_FICLONERANGE = 0x4020940D

Check = Callable[[], None]


class Partial:
    """`gaps` holds what is missing: the chunks by digest, and for each the places (offset, length) it goes to."""

    def __init__(self, path: Path, fd: int, index: ChunkIndex) -> None:
        self.path = path
        self.fd = fd
        self.index = index
        self.gaps: dict[bytes, list[tuple[int, int]]] = {}
        self._lock = threading.Lock()
        self._left = 0

    @property
    def left(self) -> int:
        """How many bytes are missing."""
        return self._left

    def survey(self, check: Check) -> None:
        """Find the gaps of what is there. `check` raises when nobody waits any more. Raises: OSError."""
        gaps: defaultdict[bytes, list[tuple[int, int]]] = defaultdict(list)
        fresh = os.fstat(self.fd).st_size != self.index.size
        if fresh:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self.index.size)
        for number, (offset, length, digest) in enumerate(self.index):
            if number % 64 == 0:
                check()
            if fresh or blake3(os.pread(self.fd, length, offset)).digest() != digest:
                gaps[digest].append((offset, length))
        self.gaps = dict(gaps)
        self._left = sum(length for places in gaps.values() for _, length in places)

    def fill(self, digest: bytes, chunk: bytes) -> None:
        """Write a chunk to all its places. Raises: BadIndexError when it is another one, OSError."""
        if blake3(chunk).digest() != digest:
            raise BadIndexError("a chunk is not what the index says")
        for offset, length in self._claim(digest):
            write_all(self.fd, memoryview(chunk)[:length], offset)

    def borrow(self, bases: Iterable[tuple[ChunkIndex, Path]], check: Check) -> None:
        """Fill gaps from other disks here, sharing their blocks where the file system can. Raises: OSError."""
        for index, path in bases:
            if not self.gaps:
                return
            with suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._borrow_from(fd, index, check)
                finally:
                    os.close(fd)

    def _borrow_from(self, fd: int, index: ChunkIndex, check: Check) -> None:
        share = True
        for number, (offset, length, digest) in enumerate(index):
            if number % 64 == 0:
                check()
            if digest not in self.gaps:
                continue
            chunk = os.pread(fd, length, offset)
            if blake3(chunk).digest() != digest:
                continue  # a damaged base: `image fsck` tells of it
            for place, size in self._claim(digest):
                share = share and _share(self.fd, fd, offset, size, place)
                if not share:
                    write_all(self.fd, memoryview(chunk), place)

    def _claim(self, digest: bytes) -> list[tuple[int, int]]:
        """The places of a chunk; whoever asks fills them."""
        with self._lock:
            places = self.gaps.pop(digest, [])
            self._left -= sum(length for _, length in places)
        return places


def _share(target: int, source: int, offset: int, length: int, place: int) -> bool:
    """Let the target have the source's blocks, as XFS and Btrfs can; False where it cannot be done."""
    try:
        fcntl.ioctl(target, _FICLONERANGE, struct.pack("<qQQQ", source, offset, length, place))
    except OSError:
        return False
    return True


def leftovers(folder: Path, *, keep_for: float = MAX_AGE) -> list[Path]:
    """The scratch files in a folder, but not what may be taken up again and is younger than `keep_for` seconds."""
    found = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.is_file() and (path.suffix != SUFFIX or time.time() - path.stat().st_mtime > keep_for):
                found.append(path)
    return found
