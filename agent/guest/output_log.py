"""The output of a session on disk: its last bytes, each with its offset and channel. Blocking; for a worker thread.

Two files at most, of which the older goes when the newer is full, so that at least `KEPT` bytes are kept. What is
written is in the kernel's hands when `append` returns: it outlasts a killed agent, which is what it is for.
A file is a sequence of records: [channel u8][length u32] and that many bytes. A record that was cut short is dropped.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..files import discard, disk_errors_named

KEPT = 4 << 20
"""Bytes of output that are kept at least."""
INDEX_EVERY = 64 << 10
_HEAD = struct.Struct(">BI")
_SUFFIX = ".out"

Piece = tuple[int, int, bytes]
"""Offset, channel, bytes."""


@dataclass(slots=True)
class _Segment:
    """One file. `index` has places in it: the offset of a record and where in the file the record begins."""

    path: Path
    start: int
    end: int
    size: int = 0
    index: list[tuple[int, int]] = field(default_factory=list)

    def note(self, length: int) -> None:
        """A record of `length` bytes follows."""
        if not self.index or self.end - self.index[-1][0] >= INDEX_EVERY:
            self.index.append((self.end, self.size))
        self.end += length
        self.size += _HEAD.size + length


class OutputLog:
    """Made by `open_output_log`."""

    def __init__(self, directory: Path, name: str, segments: list[_Segment]) -> None:
        self._directory, self._name, self._segments = directory, name, segments

    @property
    def start(self) -> int:
        """The offset of the first byte that is kept."""
        return self._segments[0].start if self._segments else 0

    @property
    def end(self) -> int:
        """The offset of the byte that comes next."""
        return self._segments[-1].end if self._segments else 0

    def append(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Append pieces of output: channel and bytes. Raises: InsufficientResources, and nothing is appended then."""
        records = [(channel, data) for channel, data in pieces if data]
        segment = self._segments[-1] if self._segments else self._begin(0)
        if segment.end - segment.start >= KEPT:
            segment = self._begin(segment.end)
        content = b"".join(_HEAD.pack(channel, len(data)) + data for channel, data in records)
        with disk_errors_named("a session's output"):
            fd = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, content, segment.size)
            finally:
                os.close(fd)
        for _, data in records:
            segment.note(len(data))

    def read(self, offset: int, size: int) -> list[Piece]:
        """About `size` bytes from `offset` on, or from the first byte that is kept; nothing at the end."""
        offset = max(offset, self.start)
        for segment in self._segments:
            if offset < segment.end:
                return list(_read(segment, offset, size))
        return []

    def remove(self) -> None:
        for segment in self._segments:
            discard(segment.path)
        self._segments = []

    def _begin(self, start: int) -> _Segment:
        if len(self._segments) == 2:
            discard(self._segments.pop(0).path)
        segment = _Segment(self._directory / f"{self._name}.{start}{_SUFFIX}", start, start)
        self._segments.append(segment)
        return segment


def open_output_log(directory: Path, name: str) -> OutputLog:
    """The log of a session, as far as it was written."""
    segments = []
    for path in directory.glob(f"{name}.*{_SUFFIX}"):
        start = int(path.name.removeprefix(f"{name}.").removesuffix(_SUFFIX))
        segment = _Segment(path, start, start)
        content = path.read_bytes()
        while len(content) - segment.size >= _HEAD.size:
            _, length = _HEAD.unpack_from(content, segment.size)
            if segment.size + _HEAD.size + length > len(content):
                break
            segment.note(length)
        os.truncate(path, segment.size)
        segments.append(segment)
    segments.sort(key=lambda segment: segment.start)
    return OutputLog(directory, name, segments)


def _write(fd: int, content: bytes, at: int) -> None:
    """Write all of it, or nothing. Raises: OSError."""
    left = memoryview(content)
    try:
        while left:
            done = os.pwrite(fd, left, at + len(content) - len(left))
            left = left[done:]
    except OSError:
        os.ftruncate(fd, at)
        raise


def _read(segment: _Segment, offset: int, size: int) -> Iterator[Piece]:
    at, position = max(place for place in segment.index if place[0] <= offset)
    with segment.path.open("rb") as file:
        file.seek(position)
        while at < segment.end and size > 0:
            channel, length = _HEAD.unpack(file.read(_HEAD.size))
            data = file.read(length)
            if at + length > offset:
                piece = data[max(0, offset - at) :]
                size -= len(piece)
                yield at + length - len(piece), channel, piece
            at += length
