"""Moves bytes between a stream and a session: one task reads, one writes, one runs the timers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

import trio

from ...protocols.errors import PeerUnreachable, TwinshareError
from ...protocols.frames import READ_SIZE
from ...protocols.messages import Closed, Event
from ...protocols.session import Session
from .host import Stream

MAX_PENDING = 1 << 20
"""Unsent bytes above which nothing more is read, and no answer is packed."""
READ_PIECE = 8 << 10
"""Bytes that are taken in between two turns of the event loop: more than 1,500 frames of the smallest kind."""
STALL = 0.5
"""Seconds late for a timer after which this node has not run: what the peer has sent meanwhile is not read yet."""
LAST_FLUSH_TIMEOUT = 1.0
"""Seconds for sending the last frame of a session that this end closes."""


class SessionDriver:
    """Calls `handle` with every event, in order, from the reading task: it must not block and must not raise."""

    def __init__(self, stream: Stream, session: Session, handle: Callable[[Event], None]) -> None:
        self._stream, self._session, self._handle = stream, session, handle
        self._scope = trio.CancelScope()
        self._unsent = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._timer_changed = trio.lowlevel.ParkingLot()
        self._writing = False
        self._timer = inf

    def flush(self) -> None:
        """Wake the writing task and the timer as far as the session needs them."""
        if self._session.pending:
            self._unsent.unpark_all()
        if self._session.next_tick < self._timer:
            self._timer_changed.unpark_all()

    async def wait_until_sent(self) -> None:
        """Wait until little enough is unsent that more may be added."""
        while self._session.pending > MAX_PENDING:
            await self._drained.park()

    def close(self, error: TwinshareError) -> None:
        """End the session and tell the peer why."""
        self._take([self._session.close(error)])

    async def run(self) -> TwinshareError:
        """Run until the session is over and return why. The stream is closed then, also when this is cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._run_timer)
            await self._flush_last()
        finally:
            self._stream.reset()
        return self._session.closed or PeerUnreachable("the connection is over")

    async def _read(self) -> None:
        while not self._session.closed:
            await self.wait_until_sent()
            try:
                data = await self._stream.receive_some(READ_PIECE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._on_data(data)

    def _on_data(self, data: bytes | bytearray) -> None:
        self._take(self._session.receive(data, trio.current_time()))
        self.flush()

    async def _write(self) -> None:
        while True:
            data = memoryview(self._session.data_to_send())
            self._drained.unpark_all()
            if not data:
                await self._unsent.park()
            self._writing = True
            try:
                for start in range(0, len(data), READ_SIZE):
                    await self._stream.send_all(data[start : start + READ_SIZE])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._take(self._session.receive(b"", trio.current_time()))
                return
            self._writing = False

    async def _run_timer(self) -> None:
        while not self._session.closed:
            self._timer = self._session.next_tick
            with trio.CancelScope(deadline=self._timer):
                await self._timer_changed.park()
            if (late := trio.current_time() - self._timer) > STALL:
                self._session.discount(late)
            self._take(self._session.tick(trio.current_time()))
            self.flush()

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            self._handle(event)
            if isinstance(event, Closed):
                self._scope.cancel()

    async def _flush_last(self) -> None:
        """Send the frame that says why the session ends, unless a write was interrupted and left half a frame."""
        with trio.move_on_after(LAST_FLUSH_TIMEOUT):
            try:
                if not self._writing:
                    await self._stream.send_all(self._session.data_to_send())
                    await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
