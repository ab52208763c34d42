"""Runs off the event loop what takes long: signatures, and decoding what a peer has made large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import trio

T = TypeVar("T")

SMALL: Final = 8 << 10
"""Bytes that are decoded on the event loop, in 8 ms at the most: a byte can be a whole value."""
MAX_THREADS: Final = 4


class Offload(Protocol):
    """Runs a function that takes long."""

    async def __call__(self, read: Callable[[], T]) -> T: ...


class Threads:
    """Runs functions in worker threads, a few at a time: there are others than peers who need threads."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(MAX_THREADS)

    async def __call__(self, read: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(read, limiter=self._limiter)


async def in_place(read: Callable[[], T]) -> T:
    """Run here: for a virtual clock, which must not run ahead of a thread."""
    await trio.lowlevel.checkpoint()
    return read()


class Decoder:
    """Decodes what one peer sends. Of the large ones one at a time: no peer has all threads."""

    def __init__(self, offload: Offload = in_place) -> None:
        self._offload = offload
        self._lock = trio.Lock()

    async def decode(self, data: bytes, read: Callable[[bytes], T]) -> T:
        """Return what `read` makes of `data`. Raises: what it raises."""
        if len(data) <= SMALL:
            return read(data)
        async with self._lock:
            return await self._offload(lambda: read(data))
