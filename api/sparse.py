"""Sends a disk without its holes: as zstd frames, which every node unpacks, and in which zeros take next to nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from ..agent.images.chunker import extents
from ..agent.images.disks import Packing, detect_packing
from ..agent.images.unpack import ZERO_FRAME, ZEROS

CHUNK = 1 << 18
FRAME = 1 << 20
LEVEL = 1
_LEAST_HOLES = 16 << 20
"""Below so many bytes of holes a file is sent as it is."""


def disk_parts(file: BinaryIO) -> Iterator[bytes]:
    """Yield what to send of a disk: the file as it is, or packed where it has holes. Raises: OSError."""
    size = _sparse_size(file)
    if not size:
        while chunk := file.read(CHUNK):
            yield chunk
        return
    compressor, position = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True), 0
    for begin, end in [*extents(file.fileno(), size), (size, size)]:
        whole, rest = divmod(begin - position, len(ZEROS))
        yield from [ZERO_FRAME] * whole
        if rest:
            yield compressor.compress(bytes(rest))
        for place in range(begin, end, FRAME):
            data = os.pread(file.fileno(), min(FRAME, end - place), place)
            yield compressor.compress(data)
        position = end


def _sparse_size(file: BinaryIO) -> int:
    """The size of a file in bytes that is worth packing and is not packed yet, else 0."""
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size - status.st_blocks * 512 < _LEAST_HOLES or file.tell():
            return 0
        head = os.pread(file.fileno(), 16, 0)
    except OSError:  # what is no file has no descriptor either
        return 0
    return status.st_size if detect_packing(head) is Packing.NONE else 0
