"""Blobs kept whole on disk until they are used: for images of others, whose parts cannot be distinguished by chunks.

A temporary file may be left at any instant and be taken up again: what is there is hashed, and the rest is asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import trio

from ....protocols.errors import RegistryFailed
from ...files import discard, write_all
from ..partial import SUFFIX
from .http_client import RangeRefused

STEP = 1 << 20
Stream = Callable[[int], AsyncGenerator[bytes, None]]
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob to fetch. `algorithm` and `digest` are what it must hash to; `size` is None where it is not known."""

    algorithm: str
    digest: str
    size: int | None
    source: str

    def path(self, folder: Path) -> Path:
        return folder / f"{self.algorithm}-{self.digest}{SUFFIX}"


async def cache_blob(wanted: Wanted, folder: Path, stream: Stream, *, limit: int, on_bytes: OnBytes) -> Path:
    """Fetch a blob into its file, or find it there. `stream(start)` gives its bytes from `start` on.

    `on_bytes` hears how many bytes came, those that were there first. At most `limit` bytes are taken.
    Raises: RegistryFailed when it is not what it should be (the file goes then), OSError, what `stream` raises.
    """
    path = wanted.path(folder)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        hashed = hashlib.new(wanted.algorithm, usedforsecurity=True)
        position = await trio.to_thread.run_sync(_hash_file, fd, hashed)
        on_bytes(position)
        if position and hashed.hexdigest() == wanted.digest:
            return path
        download = _Download(fd, wanted.source, limit, on_bytes)
        resumed = 0 < position < (position + 1 if wanted.size is None else wanted.size)
        if resumed and await _append(download, stream, position, hashed) == wanted.digest:
            return path
        if position:
            # Whatever an earlier attempt left is not the beginning of what is served now.
            on_bytes(-os.fstat(fd).st_size)
            await trio.to_thread.run_sync(os.ftruncate, fd, 0)
        hashed = hashlib.new(wanted.algorithm, usedforsecurity=True)
        if await _append(download, stream, 0, hashed) != wanted.digest:
            await trio.to_thread.run_sync(discard, path)
            raise RegistryFailed(f"{wanted.source} sends other bytes than its {wanted.algorithm} digest stands for")
    finally:
        os.close(fd)
    return path


@dataclass(frozen=True, slots=True)
class _Download:
    fd: int
    source: str
    limit: int
    on_bytes: OnBytes


async def _append(to: _Download, stream: Stream, position: int, hashed: hashlib._Hash) -> str:
    """Write what `stream` gives from `position` on; the digest of the whole file, empty when nothing is there."""
    try:
        async with aclosing(stream(position)) as parts, aclosing(lots(parts)) as joined:
            async for lot in joined:
                if position + len(lot) > to.limit:
                    raise RegistryFailed(f"{to.source} sends more than the {to.limit} bytes that are taken here")
                await trio.to_thread.run_sync(_write, to.fd, lot, position, hashed)
                position += len(lot)
                to.on_bytes(len(lot))
    except RangeRefused:
        if not position:
            raise
        return ""
    return hashed.hexdigest()


async def lots(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in fewer pieces: each costs a thread's waking."""
    lot = bytearray()
    async for data in parts:
        lot += data
        if len(lot) >= STEP:
            yield bytes(lot)
            lot.clear()
    if lot:
        yield bytes(lot)


def _write(fd: int, lot: bytes, position: int, hashed: hashlib._Hash) -> None:
    hashed.update(lot)
    write_all(fd, memoryview(lot), position)


def _hash_file(fd: int, hashed: hashlib._Hash) -> int:
    """Blocking. How long the file is."""
    position = 0
    while data := os.pread(fd, STEP, position):
        trio.from_thread.check_cancelled()
        hashed.update(data)
        position += len(data)
    return position
