"""The byte pump: carries bytes between two streams, half-closes included."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

SMALLEST, CHUNK = 24 * 1024, 6 * 65507
"""Bytes that are read at once: more while much comes. A buffer of the largest size for each small read costs more.

The largest are whole frames to a peer (`p2p/libp2p/yamux/outbox.py`), and a block that the heap keeps (`heap.py`).
"""
IDLE_TIMEOUT = 3600.0
HALF_CLOSED_TIMEOUT = 300.0
"""Seconds without a byte once one direction has ended: the other end may never close its own."""


class _Pump:
    """One pair of streams; `limit` is in bytes of each direction."""

    def __init__(self, limit: float, on_half_closed: Callable[[], None] | None) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + IDLE_TIMEOUT)
        self._limit = limit
        self._on_half_closed = on_half_closed
        self._idle_timeout = IDLE_TIMEOUT
        self._ended = 0

    @property
    def ended(self) -> bool:
        """Whether both directions came to their end."""
        return self._ended == 2

    async def carry_one_way(self, source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream) -> None:
        """Carry one direction to its end and pass the end on; a stream that breaks ends both directions."""
        left, size = self._limit, SMALLEST
        try:
            while left > 0 and (data := await source.receive_some(size)):
                left -= len(data)
                if len(data) == size:
                    size = min(size * 2, CHUNK)
                elif len(data) < size // 4:
                    size = max(size // 2, SMALLEST)
                await sink.send_all(data)
                self._postpone_end()
            self._half_close()
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.scope.cancel()
        else:
            self._ended += 1

    def _half_close(self) -> None:
        self._idle_timeout = HALF_CLOSED_TIMEOUT
        self._postpone_end()
        if self._on_half_closed is not None:
            self._on_half_closed()

    def _postpone_end(self) -> None:
        self.scope.deadline = trio.current_time() + self._idle_timeout


async def carry(
    near: trio.abc.HalfCloseableStream,
    far: trio.abc.HalfCloseableStream,
    *,
    limit: float = inf,
    on_half_closed: Callable[[], None] | None = None,
) -> bool:
    """Carry bytes both ways until both ends have ended, either breaks, or nothing has moved for `IDLE_TIMEOUT` seconds.

    Once one direction has ended, the time is `HALF_CLOSED_TIMEOUT`. Bytes in either direction count: a long download
    hears nothing from its client. A direction ends early after `limit` bytes, at most a chunk later. `on_half_closed`
    is called at the end of each direction. Returns whether both directions came to their end. The streams are left to
    be closed by the caller, who may find them broken.
    """
    pump = _Pump(limit, on_half_closed)
    with pump.scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.carry_one_way, near, far)
            nursery.start_soon(pump.carry_one_way, far, near)
    return pump.ended
