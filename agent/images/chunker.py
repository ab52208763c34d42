"""Cuts a disk into chunks whose borders depend on content alone: the same data is the same chunk in every image.

File systems keep data on 4 KiB borders: only those can be borders here. A block of zeros belongs to no chunk, whether
it is a hole of the file or written out; so a disk has one set of chunks, however it is stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

BLOCK = 4096
MIN_CHUNK = 16 * 1024
AVERAGE_CHUNK = 64 * 1024
MAX_CHUNK = 256 * 1024
WINDOW = 8 << 20

_ZEROS = bytes(BLOCK)
_ZERO_HASH = xxh3_64_intdigest(_ZEROS)
_MIN, _AVERAGE, _MAX = MIN_CHUNK // BLOCK, AVERAGE_CHUNK // BLOCK, MAX_CHUNK // BLOCK
# Harder to cut before the average length and easier after it: most chunks come out near the average.
_HARD, _EASY = _AVERAGE * 4 - 1, _AVERAGE // 4 - 1


def cut(window: memoryview, *, last: bool, enough: int | None = None) -> tuple[list[tuple[int, int]], int]:
    """The chunks in `window` as (start, end), and where to go on from.

    Unless it is the `last` of its extent, an unfinished chunk at the end is left: the next window starts there.
    Chunks that would start at `enough` or later are left, too.
    """
    found: list[tuple[int, int]] = []
    start = position = blocks = 0
    size = len(window)
    enough = size if enough is None else enough
    while position < size:
        if position >= enough and not blocks:
            return found, position
        block = window[position : position + BLOCK]
        fingerprint = xxh3_64_intdigest(block)
        if (fingerprint == _ZERO_HASH and block.tobytes() == _ZEROS) or (len(block) < BLOCK and not any(block)):
            if blocks:
                found.append((start, position))
            position += BLOCK
            start, blocks = position, 0
            continue
        position += BLOCK
        blocks += 1
        if blocks < _MIN:
            continue
        if blocks >= _MAX or not fingerprint & (_HARD if blocks < _AVERAGE else _EASY):
            found.append((start, position))
            start, blocks = position, 0
    if blocks and last:
        found.append((start, size))
        start = size
    return found, min(start, size)


def chunks(fd: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """Every chunk of the first `size` bytes of a file as (offset, data), in order. Blocking; for a worker thread.

    Raises: OSError, and EOFError for a file that ends early.
    """
    for begin, end in extents(fd, size):
        position = begin
        while position < end:
            window = _read(fd, min(WINDOW, end - position), position)
            spans, used = cut(window, last=position + len(window) >= end)
            for start, stop in spans:
                yield position + start, window[start:stop]
            position += used


def extents(fd: int, size: int, position: int = 0) -> Iterator[tuple[int, int]]:
    """Where a file may hold data after `position`, as (start, end), widened to whole blocks and joined."""
    begin = end = position
    while position < size:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            break
        position = os.lseek(fd, data, os.SEEK_HOLE)
        start = data - data % BLOCK
        if start > end:
            if end > begin:
                yield begin, min(end, size)
            begin = start
        end = position + -position % BLOCK
    if min(end, size) > begin:
        yield begin, min(end, size)


def _read(fd: int, length: int, offset: int) -> memoryview:
    view = memoryview(bytearray(length))
    if (done := read_into(view, fd, offset)) < length:
        raise EOFError(f"the file ends at byte {offset + done}")
    return view


def read_into(buffer: memoryview, fd: int, offset: int) -> int:
    """Fill a buffer from a file; how many bytes there were. Raises: OSError."""
    done = 0
    while done < len(buffer) and (count := os.preadv(fd, [buffer[done:]], offset + done)):
        done += count
    return done
