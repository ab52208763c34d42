"""Indexes a disk that is much like one that was indexed before, such as that of a VM and its image.

A chunk depends on nothing but the bytes from its start on. So where a chunk may start, and the bytes are those of a
known chunk that started there, that chunk is there again: its bytes are hashed and compared, and nothing is cut. After
a change is cut anew, until a chunk starts again where a known one did. The index is the same as if all had been cut:
what it is compared with makes it faster and never another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from .chunker import BLOCK, MAX_CHUNK, cut, read_into
from .compare import WINDOW, Check, compare
from .index import ChunkIndex, Chunks, hashed


def index_like(fd: int, size: int, known: ChunkIndex, check: Check, folder: Path | None = None) -> ChunkIndex:
    """The index of the first `size` bytes of a file, which is as long. Blocking; for a worker thread.

    `check` raises when nobody waits any more; `folder` is as of `SpooledFile`. Raises: OSError, EOFError.
    """
    return ChunkIndex.of(size, _chunks(fd, size, known, check), folder)


def _chunks(fd: int, size: int, known: ChunkIndex, check: Check) -> Chunks:
    buffer = memoryview(bytearray(WINDOW))
    position = 0  # a chunk may start here, and all before it is yielded
    starts = chain((offset for offset, _, _ in islice(known, 1, None)), [-1])
    for ((offset, length, digest), found), next_start in zip(compare(fd, known, check), starts, strict=False):
        if position < offset:
            for start, chunk in _cut(buffer, fd, position, min(offset, size), size):
                check()
                yield hashed(start, chunk)
                position = start + len(chunk)
            position = max(position, min(offset, size))
        end = offset + length
        if position == offset and found is not None and (end == next_start or _ends(fd, end, size)):
            yield offset, length, digest
            position = end
    for start, chunk in _cut(buffer, fd, position, size, size):
        check()
        yield hashed(start, chunk)


def _ends(fd: int, end: int, size: int) -> bool:
    """Whether a chunk that nothing followed ends here, too: at the end of the disk, or where a block of zeros comes."""
    return end == size or (end < size and end % BLOCK == 0 and not any(os.pread(fd, min(BLOCK, size - end), end)))


def _cut(buffer: memoryview, fd: int, position: int, limit: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """The chunks that start between `position`, where one may, and `limit`; the last may reach beyond it."""
    while (position := max(position, _next_data(fd, position, size))) < limit:
        window = buffer[: min(limit + MAX_CHUNK, position + WINDOW, size) - position]
        if (there := read_into(window, fd, position)) < len(window):
            raise EOFError(f"the file ends at byte {position + there}")
        spans, used = cut(window, last=position + there == size, enough=limit - position)
        for start, stop in spans:
            yield position + start, window[start:stop]
        position += used


def _next_data(fd: int, position: int, size: int) -> int:
    """The block in which the file may hold data again."""
    try:
        data = os.lseek(fd, position, os.SEEK_DATA)
    except OSError:  # ENXIO: a hole up to the end
        return size
    return data - data % BLOCK
