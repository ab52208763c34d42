"""Where a raw disk ends by what it says of itself, so that one that was cut is noticed. Blocking; in bytes.

The partition table says it, or on a disk without one the file system or the volume descriptor of an ISO image.
"""

from __future__ import annotations

import os
import struct

from .partitions import SECTOR, partition_ends

_ISO = 0x8000
_EXT = 1024
_EXT_64BIT = 0x80
_XFS_BLOCKS = {1 << bits for bits in range(9, 17)}


def described_end(fd: int, size: int) -> int:
    """Return where the last partition or the file system ends; 0 where the disk does not tell.

    The table of a CD that is also a disk is rounded up beyond its end: its volume descriptor counts.
    """
    iso = os.pread(fd, 2048, _ISO)
    if iso[1:6] == b"CD001":
        blocks, block_size = struct.unpack_from("<I", iso, 80)[0], struct.unpack_from("<H", iso, 128)[0]
        return int(blocks * block_size) if iso[0] == 1 and block_size == 2048 else 0
    return max(partition_ends(fd, size), default=0) or _file_system_end(fd)


def _file_system_end(fd: int) -> int:
    head = os.pread(fd, SECTOR, 0)
    if head.startswith(b"XFSB"):
        block_size, blocks = struct.unpack_from(">IQ", head, 4)
        return int(block_size * blocks) if block_size in _XFS_BLOCKS else 0
    ext = os.pread(fd, 1024, _EXT)
    if ext[56:58] == b"\x53\xef" and len(ext) == 1024:
        (blocks,), (log_size,), (features,) = (struct.unpack_from("<I", ext, place) for place in (4, 24, 96))
        if features & _EXT_64BIT:
            blocks |= struct.unpack_from("<I", ext, 0x150)[0] << 32
        return int(blocks << 10 + log_size) if log_size <= 6 else 0
    return 0
