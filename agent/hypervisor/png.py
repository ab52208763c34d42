"""Writes PNG: old QEMU makes PPM only, and the hypervisor in memory has no screen."""

from __future__ import annotations

import re
import struct
import zlib

_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")


def png(width: int, height: int, rows: bytes, *, channels: int) -> bytes:
    """Return a PNG. `rows` are the pixels, 8 bits a channel; 1 channel is grey, 3 are red, green and blue."""
    stride = width * channels
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    unfiltered = b"".join(b"\x00" + rows[line * stride : (line + 1) * stride] for line in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(unfiltered, 3))
        + _chunk(b"IEND", b"")
    )


def png_from_ppm(ppm: bytes) -> bytes:
    """Convert a PPM. Raises: ValueError for anything but a whole binary PPM of 8 bits."""
    head = _PPM.match(ppm)
    if head is None:
        raise ValueError("not a binary PPM picture of 8 bit")
    width, height = int(head[1]), int(head[2])
    rows = ppm[head.end() :]
    if len(rows) != width * height * 3:
        raise ValueError("the PPM picture is cut short")
    return png(width, height, rows, channels=3)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
