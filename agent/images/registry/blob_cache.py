"""Blobs kept whole on disk until they are used: for images of others, whose parts cannot be distinguished by chunks.

A spool file may be left at any instant and be taken up again: what is there is hashed, and the rest is asked for.
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
        if wanted.size is None or position < wanted.size:
            async with aclosing(stream(position)) as parts, aclosing(_lots(parts)) as lots:
                async for lot in lots:
                    if position + len(lot) > limit:
                        raise RegistryFailed(f"{wanted.source} sends more than the {limit} bytes that are taken here")
                    await trio.to_thread.run_sync(_append, fd, lot, position, hashed)
                    position += len(lot)
                    on_bytes(len(lot))
        if hashed.hexdigest() != wanted.digest:
            await trio.to_thread.run_sync(discard, path)
            raise RegistryFailed(f"{wanted.source} sends other bytes than its {wanted.algorithm} digest stands for")
    finally:
        os.close(fd)
    return path


async def _lots(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in fewer pieces: each costs a thread's waking."""
    lot = bytearray()
    async for data in parts:
        lot += data
        if len(lot) >= STEP:
            yield bytes(lot)
            lot.clear()
    if lot:
        yield bytes(lot)


def _append(fd: int, lot: bytes, position: int, hashed: hashlib._Hash) -> None:
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
