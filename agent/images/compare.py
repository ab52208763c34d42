"""Compares what a file holds with a chunk index, many chunks at a read. All of it is blocking, for worker threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from blake3 import blake3

from .chunker import read_into

WINDOW = 1 << 20

Check = Callable[[], None]
Entry = tuple[int, int, bytes]


def compare(fd: int, entries: Iterable[Entry], check: Check) -> Iterator[tuple[Entry, memoryview | None]]:
    """Each chunk of an index with its bytes, which are good until the next is asked for; None where others are there.

    Holes are not read: no chunk is all zeros. `check` raises when nobody waits any more. Raises: OSError.
    """
    buffer = memoryview(bytearray(WINDOW))
    for stretch in _stretches(entries):
        check()
        begin, length = stretch[0][0], stretch[-1][0] + stretch[-1][1] - stretch[0][0]
        there = 0 if _is_hole(fd, begin, length) else read_into(buffer[:length], fd, begin)
        for entry in stretch:
            start, end = entry[0] - begin, entry[0] - begin + entry[1]
            good = end <= there and blake3(buffer[start:end]).digest() == entry[2]
            yield entry, buffer[start:end] if good else None


def _stretches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Chunks that lie side by side, at most a window of them at a time."""
    stretch: list[Entry] = []
    begin = end = 0
    for entry in entries:
        offset, length, _ = entry
        if stretch and (offset != end or offset + length - begin > WINDOW):
            yield stretch
            stretch = []
        if not stretch:
            begin = offset
        stretch.append(entry)
        end = offset + length
    if stretch:
        yield stretch


def _is_hole(fd: int, begin: int, length: int) -> bool:
    try:
        return os.lseek(fd, begin, os.SEEK_DATA) >= begin + length
    except OSError:  # ENXIO: a hole up to the end
        return True
