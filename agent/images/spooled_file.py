"""Bytes that may be too many for memory: those of more than a few MiB stay in a file without a name.

`tempfile.SpooledTemporaryFile` has one position: here several threads read parts of one file, each where it is.
All of it is blocking, for worker threads.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

from ..files import write_all

IN_MEMORY = 4 << 20
STEP = 1 << 20


class _File:
    """An open file, which is closed when nothing refers to it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


class FileBytes:
    """Part of a file that nobody changes, read where it is sliced."""

    def __init__(self, file: _File, start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, span: slice) -> bytes:
        start, end, _ = span.indices(len(self))
        return os.pread(self._file.fd, max(0, end - start), self._start + start)

    def part(self, start: int, end: int) -> FileBytes:
        """The bytes from `start` to `end`, unread."""
        return FileBytes(self._file, self._start + start, self._start + end)


Bytes = bytes | FileBytes


def part_of(data: Bytes, start: int, end: int) -> Bytes:
    """The bytes from `start` to `end`; of a file they are not read."""
    return data.part(start, end) if isinstance(data, FileBytes) else data[start:end]


def open_bytes(path: Path) -> Bytes:
    """The content of a file, which is not to change. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    size = os.fstat(fd).st_size
    if size > IN_MEMORY:
        return FileBytes(_File(fd), 0, size)
    try:
        return os.pread(fd, size, 0)
    finally:
        os.close(fd)


class SpooledFile:
    """Take bytes in pieces. `folder` is where the file is made, if it comes to that; None for the system's own."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._file: _File | None = None
        self._written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Raises: OSError."""
        self._buffer += data
        if len(self._buffer) >= (STEP if self._file else IN_MEMORY):
            self._flush()

    def finish(self) -> Bytes:
        """All that was written. Raises: OSError."""
        if self._file is None:
            return bytes(self._buffer)
        return FileBytes(self._flush(), 0, self._written)

    def _flush(self) -> _File:
        if self._file is None:
            # Without a name: it goes with the agent, however that ends.
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._file = _File(os.dup(file.fileno()))
        write_all(self._file.fd, memoryview(bytes(self._buffer)), self._written)
        self._written += len(self._buffer)
        self._buffer.clear()
        return self._file
