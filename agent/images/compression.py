"""Decides whether what is sent is compressed: where the line is so slow, and the data such, that it saves time."""

from __future__ import annotations

import struct
import time
from collections import deque
from typing import TypeAlias

import zstandard

LEVEL = 1
TRIED = 32
"""One of so many chunks is compressed where it does not pay: what follows may be other data, the line another one."""
RECENT = 8
"""Sends of which the fastest counts: the others waited for the far side and not for the line."""
LEAST = 1 << 17
"""Bytes of a send that says something of the line."""
_WEIGHT = 0.25
_BLOCK = 1 << 17
_SINGLE_SEGMENT = b"\x28\xb5\x2f\xfd\xa0"
_PLAIN_HEAD = struct.Struct("<5sIHB")

Frame: TypeAlias = list[bytes | memoryview]
"""A zstd frame in parts."""


class Compression:
    """Of one stream. `frame` is called in a worker thread, `sent` in the loop's."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._line: deque[float] = deque(maxlen=RECENT)
        self._cost = 0.0
        self._ratio = 0.0
        self._skipped = 0

    def sent(self, size: int, seconds: float) -> None:
        """So many bytes were taken by the line in so many seconds."""
        if size >= LEAST:
            self._line.append(seconds / size)

    @property
    def pays(self) -> bool:
        """Whether fewer bytes on the line save more seconds than compressing them takes. At first it is tried."""
        saved = (1 - self._ratio) * min(self._line, default=1.0)
        return saved > self._cost

    def frame(self, data: bytes | memoryview) -> Frame:
        """A zstd frame of the data, compressed or not."""
        if not self.pays and self._skipped < TRIED:
            self._skipped += 1
            return plain_frame(data)
        self._skipped = 0
        begun = time.thread_time()
        frame = self._compressor.compress(data)
        taken = time.thread_time() - begun
        weight = _WEIGHT if self._cost else 1.0
        self._cost += weight * (taken / len(data) - self._cost)
        self._ratio += weight * (len(frame) / len(data) - self._ratio)
        return [frame] if len(frame) < len(data) else plain_frame(data)


def plain_frame(data: bytes | memoryview) -> Frame:
    """A zstd frame that holds the data uncompressed (RFC 8878): of one segment, its size in four bytes."""
    parts: Frame = [_SINGLE_SEGMENT, len(data).to_bytes(4, "little")]
    view = memoryview(data)
    for start in range(0, len(data), _BLOCK):
        block = view[start : start + _BLOCK]
        last = start + _BLOCK >= len(data)
        parts += [(len(block) << 3 | last).to_bytes(3, "little"), block]
    return parts


def plain_content(frame: memoryview) -> memoryview | None:
    """What a frame of one uncompressed block holds, which need not be copied; None for any other frame."""
    size = len(frame) - _PLAIN_HEAD.size
    if size < 0:
        return None
    start, content_size, low, high = _PLAIN_HEAD.unpack_from(frame)
    is_plain = start == _SINGLE_SEGMENT and content_size == size and (low | high << 16) == (size << 3 | 1)
    return frame[_PLAIN_HEAD.size :] if is_plain else None
