"""Takes the stream of a disk into a scratch file: unpacked, its format known, zeros as holes, bounded in size."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ...protocols.operation import Progress
from ..files import write_all
from .chunker import BLOCK
from .disk_end import described_end
from .disks import Format, check_size, damaged, detect_format, detect_packing, whole_sectors
from .port import Report
from .signatures import HEAD
from .unpack import unpack

WINDOW = 1 << 20
_ZEROS = bytes(WINDOW)
_ZERO_BLOCK = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Received:
    """`size` is the disk's, in bytes; the file is as long where the format is raw."""

    format: Format
    size: int


async def receive(
    content: AsyncIterable[bytes], fd: int, *, max_size: int, report: Report, raw: bool = False
) -> Received:
    """Write `content` to the empty file `fd`. One worker thread does the work and asks for the content's parts.

    `raw` as in `detect_format`.

    `content` is closed at the end, read to its end or not.
    Raises: InvalidRequest for a disk that is not taken in; OSError; whatever `content` raises.
    """
    source = _Source(_Feed(content, report))

    def work() -> Received:
        parts = unpack(source.read, detect_packing(source.head()))
        return write_disk(parts, fd, max_size, raw=raw)

    async with closed_after(content):
        return await trio.to_thread.run_sync(work)


@asynccontextmanager
async def closed_after(content: AsyncIterable[bytes]) -> AsyncIterator[None]:
    """Close a generator that may be left half read: its own `finally` may need the loop."""
    try:
        yield
    finally:
        if isinstance(content, AsyncGenerator):
            with trio.CancelScope(shield=True):
                await content.aclose()


class _Feed:
    """The async side: collects small parts, so that a thread is not woken for each."""

    def __init__(self, content: AsyncIterable[bytes], report: Report) -> None:
        self._content: AsyncIterator[bytes] = aiter(content)
        self._report = report
        self._received = 0

    async def more(self) -> bytes:
        """At least a window of bytes, or what there is left; nothing at the end."""
        parts: list[bytes] = []
        collected = 0
        while collected < WINDOW:
            part = await anext(self._content, None)
            if part is None:
                break
            parts.append(part)
            collected += len(part)
        self._received += collected
        if collected:
            self._report(Progress(done=self._received, unit="bytes", message="receiving"))
        return b"".join(parts)


class _Source:
    """The thread's side. When the import is cancelled, the cancellation is raised here."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self._data = b""
        self._position = 0

    def head(self) -> bytes:
        """The first bytes, which stay to be read."""
        self._fill()
        return self._data[:HEAD]

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end."""
        self._fill()
        data = self._data[self._position : self._position + count]
        self._position += len(data)
        return data

    def _fill(self) -> None:
        if self._position >= len(self._data):
            self._data, self._position = trio.from_thread.run(self._feed.more), 0


def write_disk(parts: Iterator[bytes], fd: int, max_size: int, *, raw: bool = False) -> Received:
    """Write a disk to an empty file; a raw one's length becomes whole sectors. Blocking; for a worker thread."""
    kind: Format | None = None
    size: int | None = None
    offset, rest = 0, b""
    for part in parts:
        data = rest + part if rest else part
        if kind is None and len(data) < HEAD:
            rest = data
            continue
        if kind is None:
            kind, size = detect_format(data[:HEAD], max_size, raw=raw)
        whole = len(data) - len(data) % BLOCK
        check_size(offset + len(data), max_size)
        _write_sparse(fd, data if whole == len(data) else data[:whole], offset)
        offset, rest = offset + whole, data[whole:]
    if kind is None:
        kind, size = detect_format(rest, max_size, raw=raw)
    _write_sparse(fd, rest, offset)
    offset += len(rest)
    check_size(offset, max_size)
    # What a qcow2 file lacks at its end must not be made up: it is missed later.
    length = whole_sectors(offset) if kind is Format.RAW else offset
    os.ftruncate(fd, length)
    if kind is Format.RAW and not raw and (end := described_end(fd, length)) > length:
        raise damaged(
            f"it has {length} bytes, and its partitions or its file system reach to {end}: it was cut off; "
            "where it is whole all the same, say so with raw"
        )
    return Received(kind, length if size is None else size)


def _write_sparse(fd: int, data: bytes, offset: int) -> None:
    """Write what is not zero; `offset` is on a block."""
    if data == _ZEROS[: len(data)]:
        return
    view = memoryview(data)
    for begin, end in _runs(data):
        write_all(fd, view[begin:end], offset + begin)


def _runs(window: bytes) -> Iterator[tuple[int, int]]:
    """The runs of blocks that are not all zero."""
    begin: int | None = None
    for position in range(0, len(window), BLOCK):
        if window[position : position + BLOCK] == _ZERO_BLOCK:
            if begin is not None:
                yield begin, position
                begin = None
        elif begin is None:
            begin = position
    if begin is not None:
        yield begin, len(window)
