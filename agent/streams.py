"""The byte pump: carries bytes between two streams, half-closes included."""

from __future__ import annotations

from math import inf

import trio

CHUNK = 65536
IDLE_TIMEOUT = 3600.0


class _Pump:
    """One pair of streams; `limit` is in bytes of each direction."""

    def __init__(self, limit: float) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + IDLE_TIMEOUT)
        self._limit = limit
        self._ended = 0

    @property
    def ended(self) -> bool:
        """Whether both directions came to their end."""
        return self._ended == 2

    async def carry_one_way(self, source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream) -> None:
        """Carry one direction to its end and pass the end on; a stream that breaks ends both directions."""
        left = self._limit
        try:
            while left > 0 and (data := await source.receive_some(CHUNK)):
                left -= len(data)
                await sink.send_all(data)
                self.scope.deadline = trio.current_time() + IDLE_TIMEOUT
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.scope.cancel()
        else:
            self._ended += 1


async def carry(near: trio.abc.HalfCloseableStream, far: trio.abc.HalfCloseableStream, *, limit: float = inf) -> bool:
    """Carry bytes both ways until both ends have ended, either breaks, or nothing has moved for `IDLE_TIMEOUT` seconds.

    Bytes in either direction count: a long download hears nothing from its client. A direction ends early after
    `limit` bytes, at most a chunk later. Returns whether both directions came to their end. The streams are left to be
    closed by the caller, who may find them broken.
    """
    pump = _Pump(limit)
    with pump.scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.carry_one_way, near, far)
            nursery.start_soon(pump.carry_one_way, far, near)
    return pump.ended
