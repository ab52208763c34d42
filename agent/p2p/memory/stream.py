"""A stream of the network in memory: two pipes with a window, whose bytes take time and wait out a silent link."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

import trio

from ..host import PeerId, Stream

WINDOW = 64 << 10
"""Bytes that a sender can be ahead of its reader."""


class Pipe:
    """One direction. `delay` tells how long bytes travel, None while the link lets nothing pass."""

    def __init__(self, delay: Callable[[], float | None]) -> None:
        self._delay = delay
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._ends_at = inf
        self._breaks_at = inf
        self._changed = trio.lowlevel.ParkingLot()
        self.abandoned = False

    def wake(self) -> None:
        """Wake both ends: the pipe, its streams or its link have changed."""
        self._changed.unpark_all()

    async def wait_for_change(self) -> None:
        """Wait for a change of the pipe, its streams or its link."""
        await self._changed.park()

    async def wait_for_data(self) -> None:
        """Wait for a change or until the next bytes arrive."""
        with trio.CancelScope(deadline=self._readable_at()):
            await self._changed.park()

    @property
    def room(self) -> int:
        return WINDOW - self._size

    def put(self, data: bytes) -> None:
        self._size += len(data)
        self._chunks.append((self._arrives_at(), data))
        self.wake()

    def end(self) -> None:
        self._ends_at = min(self._ends_at, self._arrives_at())
        self.wake()

    def break_off(self) -> None:
        self._breaks_at = min(self._breaks_at, self._arrives_at())
        self.wake()

    def take(self, max_bytes: int) -> bytes | None:
        """What a reader gets now, None when it has to wait. Raises: BrokenResourceError."""
        if self._readable_at() > trio.current_time():
            return None
        if self._breaks_at <= trio.current_time():
            raise trio.BrokenResourceError("the far side has reset the stream")
        if not self._chunks:
            return b""
        at, chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft((at, chunk[max_bytes:]))
        taken = chunk[:max_bytes]
        self._size -= len(taken)
        self.wake()
        return taken

    def _arrives_at(self) -> float:
        return trio.current_time() + (self._delay() or 0)

    def _readable_at(self) -> float:
        if self._delay() is None:
            return inf
        return min(self._breaks_at, self._chunks[0][0] if self._chunks else self._ends_at)


class MemoryStream(Stream):
    """One end of a stream."""

    def __init__(self, peer_id: PeerId, protocol: str, incoming: Pipe, outgoing: Pipe) -> None:
        self._peer_id, self._protocol = peer_id, protocol
        self._incoming, self._outgoing = incoming, outgoing
        self._eof_sent = self._closed = self._lost = False
        self._sending = _OneTask("another task is sending on this stream")
        self._receiving = _OneTask("another task is receiving from this stream")

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def over(self) -> bool:
        return self._closed or self._lost

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending.hold():
            await trio.lowlevel.checkpoint()
            rest = memoryview(bytes(data))
            self._check_sending()
            while rest:
                await self._wait_for_room()
                size = min(len(rest), self._outgoing.room)
                self._outgoing.put(bytes(rest[:size]))
                rest = rest[size:]

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending.hold():
            await trio.lowlevel.checkpoint()
            await self._wait_for_room()

    async def send_eof(self) -> None:
        with self._sending.hold():
            await trio.lowlevel.checkpoint()
            if self._eof_sent and not self.over:
                return
            self._check_sending()
            self._eof_sent = True
            self._outgoing.end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving.hold():
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                data = self._incoming.take(max_bytes or WINDOW)
                if data is not None:
                    return data
                await self._incoming.wait_for_data()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """What `aclose` does, at once: the far side reads what was sent, then the end."""
        if not self.over:
            self._outgoing.end()
        self._finish(closed=True)

    def reset(self) -> None:
        if not self.over:
            self._outgoing.break_off()
        self._finish(closed=True)

    def lose(self) -> None:
        """The connection below is gone: whoever uses this end gets `BrokenResourceError`."""
        self._finish(closed=False)

    def wake(self) -> None:
        """The link below has changed: let both directions look again."""
        self._incoming.wake()
        self._outgoing.wake()

    def _finish(self, *, closed: bool) -> None:
        self._closed, self._lost = self._closed or closed, self._lost or not closed
        self._incoming.abandoned = True
        self.wake()

    async def _wait_for_room(self) -> None:
        self._check_sending()
        while self._outgoing.room <= 0:
            await self._outgoing.wait_for_change()
            self._check_sending()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        if self._lost:
            raise trio.BrokenResourceError("the connection is lost")

    def _check_sending(self) -> None:
        self._check_open()
        if self._eof_sent:
            raise trio.ClosedResourceError("the end of this stream is sent")
        if self._outgoing.abandoned:
            raise trio.BrokenResourceError("the far side has closed the stream")


class _OneTask:
    """Refuses a second task where trio's stream contract allows one."""

    def __init__(self, sentence: str) -> None:
        self._sentence, self._held = sentence, False

    @contextmanager
    def hold(self) -> Iterator[None]:
        if self._held:
            raise trio.BusyResourceError(self._sentence)
        self._held = True
        try:
            yield
        finally:
            self._held = False
