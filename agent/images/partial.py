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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from blake3 import blake3

from ..files import write_all
from .chunker import extents
from .compare import WINDOW, Check, compare
from .gaps import Gaps
from .index import BadIndexError, ChunkIndex

SUFFIX = ".pull"
MAX_AGE = 7 * 86400.0
# So many bytes are written before the disk is asked to keep them: at the end there is little to wait for.
SYNC_STEP = 128 << 20
_FICLONERANGE = 0x4020940D
_MOST_PARTS = 1024  # that one write takes


class Partial:
    """`gaps` holds what is missing."""

    def __init__(self, path: Path, fd: int, index: ChunkIndex) -> None:
        self.path = path
        self.fd = fd
        self.index = index
        self.gaps = Gaps(index)
        self._lock = threading.Lock()
        self._left = 0
        self._unsynced = 0

    @property
    def left(self) -> int:
        """How many bytes are missing."""
        return self._left

    def survey(self, check: Check) -> None:
        """Find the gaps of what is there. `check` raises when nobody waits any more. Raises: OSError."""
        if os.fstat(self.fd).st_size != self.index.size:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self.index.size)
        gaps, left = Gaps(self.index), 0
        for place, ((_, length, digest), found) in enumerate(compare(self.fd, self.index, check)):
            if found is None:
                gaps.add(place, digest)
                left += length
        self.gaps, self._left = gaps, left
        if os.fstat(self.fd).st_blocks:
            self._clear_between(check)

    def _clear_between(self, check: Check) -> None:
        """Write zeros where no chunk is and something else was left."""
        position = 0
        for offset, length, _ in chain(self.index, [(self.index.size, 0, b"")]):
            for begin, end in extents(self.fd, offset, position) if offset > position else ():
                for start in range(max(begin, position), end, WINDOW):
                    check()
                    data = os.pread(self.fd, min(WINDOW, end - start), start)
                    if data.count(0) < len(data):
                        write_all(self.fd, memoryview(bytes(len(data))), start)
            position = offset + length

    def fill(self, chunks: Sequence[tuple[bytes, bytes | memoryview]]) -> None:
        """Write chunks, given with their digests, to all their places.

        Raises: BadIndexError when one of them is another than it should be (and then none is written), OSError.
        """
        for digest, chunk in chunks:
            if blake3(chunk).digest() != digest:
                raise BadIndexError("a chunk is not what the index says")
        writer = _Writer(self.fd)
        for digest, chunk in chunks:
            for offset, length in self._claim(digest):
                writer.write(memoryview(chunk)[:length], offset)
        writer.flush()
        self._sync_now_and_then(writer.written)

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
        for (offset, _, digest), chunk in compare(fd, (entry for entry in index if entry[2] in self.gaps), check):
            if chunk is None:
                continue  # a damaged base: `image fsck` tells of it
            for place, size in self._claim(digest):
                share = share and _share(self.fd, fd, offset, size, place)
                if not share:
                    write_all(self.fd, chunk, place)

    def _claim(self, digest: bytes) -> list[tuple[int, int]]:
        """The places of a chunk; whoever asks fills them."""
        with self._lock:
            places = self.gaps.pop(digest)
            self._left -= sum(length for _, length in places)
        return places

    def _sync_now_and_then(self, written: int) -> None:
        with self._lock:
            self._unsynced += written
            if due := self._unsynced >= SYNC_STEP:
                self._unsynced = 0
        if due:
            os.fdatasync(self.fd)


class _Writer:
    """Writes parts that follow each other in the file together."""

    def __init__(self, fd: int) -> None:
        self.written = 0
        self._fd = fd
        self._parts: list[memoryview] = []
        self._begin = self._end = 0

    def write(self, part: memoryview, offset: int) -> None:
        if offset != self._end or len(self._parts) == _MOST_PARTS:
            self.flush()
            self._begin = offset
        self._parts.append(part)
        self._end = offset + len(part)

    def flush(self) -> None:
        if self._parts:
            done = os.pwritev(self._fd, self._parts, self._begin)
            if done < self._end - self._begin:  # a disk that is nearly full: the next write says so
                write_all(self._fd, memoryview(b"".join(self._parts))[done:], self._begin + done)
            self.written += self._end - self._begin
            self._parts = []


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
