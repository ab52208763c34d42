"""The trio shell of a session: one task reads, one writes, one watches for silence.

Streams put what they send into the outbox, so a caller that is cancelled leaves no frame half done. The writer takes
what is urgent in one go, and of bulk as much as the line carries without delaying what is urgent next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import trio

from ...host import PeerId
from ..pacing import NO_ROOM, TURN, BulkRoom
from ..pipe import PipeBroken
from .frame import ProtocolError
from .outbox import HIGH_WATER
from .session import Event, Events, Session, SessionLimits, SessionOver
from .stream import YamuxStream

_TICKS: Final = 5
"""The watcher looks this often within the time after which a silent far side counts as dead."""
_PIECE: Final = 8 << 10
"""Bytes of whole frames that are taken in before the clock is looked at."""
_GOODBYE: Final = 1.0
"""Seconds for the last frames to leave."""

Accept: TypeAlias = Callable[[YamuxStream], None]


class Channel(Protocol):
    """An encrypted pipe. `receive` and `send` raise PipeBroken."""

    async def receive(self) -> bytes: ...

    async def send(self, data: bytes) -> None: ...

    def bulk_room(self) -> BulkRoom: ...

    def close(self) -> None: ...


class YamuxConnection:
    """One connection with a proven peer. It lives while `run` runs; `reason` says afterwards why it ended."""

    def __init__(
        self,
        channel: Channel,
        *,
        peer_id: PeerId,
        client: bool,
        peer_timeout: float,
        limits: SessionLimits | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.session = Session(client=client, limits=limits)
        self.closed = trio.Event()
        self.reason: str | None = None
        self._channel = channel
        self._peer_timeout = peer_timeout
        self._scope = trio.CancelScope()
        self._streams: dict[int, YamuxStream] = {}
        self._blocked: dict[YamuxStream, None] = {}  # streams that wait for room in the outbox, first come first
        self._writer = trio.lowlevel.ParkingLot()
        self._pongs = trio.lowlevel.ParkingLot()

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def usable(self) -> bool:
        """Streams can be opened."""
        return not (self.session.over or self.session.going_away)

    async def run(self, accept: Accept) -> None:
        """Carry streams until the connection ends, for whatever reason; `accept` gets what the far side opens."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    await self._read(accept)
                    nursery.cancel_scope.cancel()
        finally:
            self.give_up()
            self.closed.set()

    def carries(self, stream: object) -> bool:
        """The stream is one of ours and not over."""
        return isinstance(stream, YamuxStream) and self._streams.get(stream.id) is stream

    def open_stream(self) -> YamuxStream:
        """Raises: SessionOver, TooManyStreams."""
        state = self.session.open()
        stream = self._streams[state.id] = YamuxStream(self, state)
        self.wake_writer()
        return stream

    async def ping(self) -> float:
        """The round trip in seconds; there may be no answer, so put a deadline around it. Raises: SessionOver."""
        start = trio.current_time()
        self.session.ping()
        self.wake_writer()
        await self._pongs.park()
        if self.session.over:
            raise SessionOver
        return trio.current_time() - start

    async def aclose(self) -> None:
        """Say goodbye and end; takes `_GOODBYE` at most."""
        self.reason = self.reason or "we closed it"
        self.session.go_away()
        self._wake_all()
        with trio.move_on_after(_GOODBYE):
            await self.closed.wait()
        self._scope.cancel()

    def give_up(self) -> None:
        """End without a word, also when `run` was never called."""
        self._end("it was given up")
        self._channel.close()
        self._scope.cancel()

    # -- for the streams

    def wake_writer(self) -> None:
        """There is something to write."""
        self._writer.unpark()

    def wait_for_room(self, stream: YamuxStream) -> None:
        self._blocked[stream] = None

    def forget(self, stream: YamuxStream) -> None:
        if self._streams.get(stream.id) is stream:  # a far side may use a number again
            del self._streams[stream.id]
        self._blocked.pop(stream, None)

    # -- the three tasks

    async def _write(self) -> None:
        outbox = self.session.outbox
        try:
            while True:
                if outbox.size:
                    room = self._channel.bulk_room() if outbox.bulk else NO_ROOM
                    if room.size or outbox.urgent:
                        await self._channel.send(self._take(min(room.size, HIGH_WATER)))
                    else:
                        with trio.move_on_after(room.pause):
                            await self._writer.park()
                elif self.session.over:
                    break
                else:
                    await self._writer.park()
        except PipeBroken as error:
            self._end(str(error))
        self._scope.cancel()

    async def _read(self, accept: Accept) -> None:
        try:
            while data := await self._channel.receive():
                turn_ends = trio.current_time() + TURN
                view, start = memoryview(data), 0
                while start < len(data):
                    if trio.current_time() > turn_ends:
                        await trio.lowlevel.checkpoint()
                        turn_ends = trio.current_time() + TURN
                    self._dispatch(self.session.receive(view[start:], _PIECE), accept)
                    start += self.session.taken
            self._end("the peer closed it")
        except PipeBroken as error:
            self._end(str(error))
        except ProtocolError as error:
            self.session.go_away(violated=True)
            self._end(f"the peer broke the protocol: {error}")
            await trio.sleep(_GOODBYE)  # the writer ends this when the goodbye is out

    async def _watch(self) -> None:
        while self.session.tick() < _TICKS - 1:
            self.wake_writer()
            await trio.sleep(self._peer_timeout / _TICKS)
        self._end(f"the peer was silent for {self._peer_timeout:g} s")
        self._scope.cancel()

    # -- events

    def _dispatch(self, events: Events, accept: Accept) -> None:
        for event, state in events:
            if state is None:
                self._pongs.unpark_all()
            elif event is Event.OPENED:
                stream = YamuxStream(self, state)
                if not state.over:
                    self._streams[state.id] = stream
                accept(stream)
            elif (known := self._streams.get(state.id)) is not None:
                known.wake()
        if self.session.outbox.size:
            self.wake_writer()

    def _take(self, bulk: int) -> bytes:
        """What is to be written next, with at most `bulk` bytes of bulk. Whoever waited for room has it now."""
        data = self.session.outbox.take(bulk)
        blocked, self._blocked = self._blocked, {}
        for stream in blocked:
            stream.wake()
        return data

    def _wake_all(self) -> None:
        for stream in list(self._streams.values()):
            stream.wake()
        self.wake_writer()

    def _end(self, reason: str) -> None:
        """Break every stream. The first reason stands."""
        self.reason = self.reason or reason
        self.session.end()
        self._wake_all()
        self._pongs.unpark_all()
