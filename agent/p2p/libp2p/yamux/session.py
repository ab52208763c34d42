"""One yamux session as a state machine: bytes in, events out; calls in, bytes out. No task, no socket, no clock.

Nothing that the far side sends makes it hold more than its windows, its limits and `MAX_ANSWERS` bytes of answers:
whoever sends past a window, floods or breaks a rule gets `ProtocolError`, and the connection must be closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from sys import maxsize
from typing import Final, TypeAlias

from ....limits import LIMITS
from .frame import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW, FrameReader, Header, ProtocolError, encode
from .outbox import MAX_PAYLOAD, Outbox
from .state import INITIAL_WINDOW, StreamState

_MAX_CREDIT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """`window_budget`: bytes by which all receive windows together may grow beyond their initial size."""

    streams_each_way: int = LIMITS.streams
    window: int = 4 * 1024 * 1024
    window_budget: int = 16 * 1024 * 1024


class SessionOver(Exception):
    """No stream can be opened: the session is over or the far side is going away."""


class TooManyStreams(Exception):
    """As many streams of ours are open as the limits allow."""


class Event(Enum):
    """`CHANGED`: look at the stream's state again. `PONG`: our last ping was answered; the stream is None."""

    OPENED = auto()
    CHANGED = auto()
    PONG = auto()


Events: TypeAlias = list[tuple[Event, StreamState | None]]


class Session:
    """`client`: we dialled. `max_inbound` may be lowered or raised at any time; `outbox` is what to write."""

    def __init__(self, *, client: bool, limits: SessionLimits | None = None) -> None:
        self.limits = limits or SessionLimits()
        self.max_inbound = self.limits.streams_each_way
        self.outbox = Outbox()
        self.streams: dict[int, StreamState] = {}
        self.over = False
        self.going_away = False
        self._reader = FrameReader()
        self._next_id = 1 if client else 2
        self._count = {True: 0, False: 0}  # live streams by `outbound`
        self._grown = 0
        self._ping = 0
        self._body_of: tuple[Header, StreamState | None] = (Header(DATA, 0, 0, 0), None)
        self._events: Events = []
        self._heard = True
        self._silence = 0

    # -- what we do

    def open(self) -> StreamState:
        """Raises: SessionOver, TooManyStreams."""
        if self.over or self.going_away or self._next_id > _MAX_CREDIT:
            raise SessionOver
        if self._count[True] >= self.limits.streams_each_way:
            raise TooManyStreams
        state = StreamState(self._next_id, outbound=True)
        self._next_id += 2
        self._add(state)
        self.outbox.put(encode(WINDOW, SYN, state.id, 0))
        return state

    def writable(self, state: StreamState) -> bool:
        """A write accepts something, or will never again accept anything."""
        return state.broken or state.write_ended or (state.send_credit > 0 and self.outbox.room(state.id) > 0)

    def room(self, state: StreamState) -> int:
        """Bytes that a write accepts now."""
        if state.broken or state.closed or state.write_ended:
            return 0
        return min(state.send_credit, MAX_PAYLOAD, self.outbox.room(state.id))

    def write(self, state: StreamState, data: memoryview) -> int:
        """Queue as much of `data` as credit and room allow; returns how much."""
        size = min(len(data), self.room(state))
        if size == 0:
            return 0
        state.send_credit -= size
        # What cannot change is queued as it is, anything else is copied.
        self.outbox.put_data(state.id, data[:size] if type(data.obj) is bytes else bytes(data[:size]))
        return size

    def read(self, state: StreamState, most: int | None = None) -> bytes:
        """Take what has arrived, at most `most` bytes, and give the far side credit for it; empty if there is none."""
        data = state.unread.take(most)
        state.unacknowledged += len(data)
        if state.unacknowledged * 2 >= state.window and not state.read_ended and not state.over:
            self._acknowledge(state)
        return data

    def finish(self, state: StreamState) -> None:
        """We send no more; reading goes on."""
        if not state.write_ended and not state.over:
            state.write_ended = True
            self.outbox.put_end(state.id, encode(WINDOW, FIN, state.id, 0))
            self._forget_if_over(state)

    def close(self, state: StreamState) -> None:
        """End our side of both directions. What the far side still sends is answered with a reset."""
        self.finish(state)
        if not state.over and state.receive_credit < INITIAL_WINDOW:
            # A far side that waits for credit would never learn that nobody reads: let it send, so that it is reset.
            self.outbox.put(encode(WINDOW, 0, state.id, INITIAL_WINDOW))
        self._drop(state)

    def reset(self, state: StreamState) -> None:
        """End both directions and what is under way in them."""
        if not state.over:
            self.outbox.put_reset(state.id, encode(WINDOW, RST, state.id, 0))
        self._drop(state)

    def ping(self) -> int:
        """Ask for an answer; a `PONG` follows. Returns the ping's value. Raises: SessionOver."""
        if self.over:
            raise SessionOver
        self._ping = (self._ping + 1) & _MAX_CREDIT
        self.outbox.put(encode(PING, SYN, 0, self._ping))
        return self._ping

    def tick(self) -> int:
        """Call at a steady interval: how many of them in a row brought nothing. A silent far side is pinged.

        Counting intervals instead of seconds keeps a process that was stopped for a while from taking its own absence
        for the far side's death.
        """
        self._silence = 0 if self._heard else self._silence + 1
        self._heard = False
        if self._silence and not self.over:
            self.ping()
        return self._silence

    def go_away(self, *, violated: bool = False) -> None:
        """Tell the far side that we close, and end every stream."""
        if not self.over:
            self.outbox.put(encode(GO_AWAY, 0, 0, int(violated)))
            self.end()

    def end(self) -> None:
        """The connection is gone: every stream is broken."""
        self.over = True
        for state in list(self.streams.values()):
            state.broken = True
            self._forget_if_over(state)

    # -- what the far side does

    @property
    def taken(self) -> int:
        """Bytes of what was last received that were taken in."""
        return self._reader.taken

    def receive(self, data: bytes | memoryview, enough: int = maxsize) -> Events:
        """Take in what arrived, in pieces of any size: whole frames until they are `enough` bytes.

        Raises: ProtocolError, after which the session must be ended.
        """
        self._heard = True
        self._events = []
        for part in self._reader.feed(data, enough):
            if isinstance(part, Header):
                self._on_header(part)
            else:
                self._on_body(part)
        return self._events

    def _on_header(self, header: Header) -> None:
        if header.kind == PING:
            self._on_ping(header)
        elif header.kind == GO_AWAY:
            self.going_away = True
            if header.length:
                raise ProtocolError(f"the peer went away with reason {header.length}")
        elif header.stream_id == 0:
            raise ProtocolError("stream 0 carries no data")
        else:
            self._on_stream(header)

    def _on_ping(self, header: Header) -> None:
        if header.flags & SYN:
            self.outbox.answer(encode(PING, ACK, 0, header.length))
        elif header.flags & ACK and header.length == self._ping:
            self._events.append((Event.PONG, None))

    def _on_stream(self, header: Header) -> None:
        state = self._accept(header.stream_id) if header.flags & SYN else self.streams.get(header.stream_id)
        if header.kind == DATA and header.length:
            self._body_of = (header, state)
            if state is not None:
                self._charge(state, header.length)
            elif not header.flags & (SYN | RST):
                self.outbox.answer(encode(WINDOW, RST, header.stream_id, 0))
            return
        if header.kind == WINDOW and state is not None and not header.flags & RST:
            state.send_credit += header.length
            if state.send_credit > _MAX_CREDIT:
                raise ProtocolError("more credit than a window can hold")
        self._on_flags(header, state)

    def _charge(self, state: StreamState, size: int) -> None:
        state.receive_credit -= size
        if state.receive_credit < 0:
            raise ProtocolError("the peer sent past the window")
        if state.read_ended:
            raise ProtocolError("the peer sent data after its end")

    def _on_body(self, piece: memoryview) -> None:
        header, state = self._body_of
        if state is not None and not state.over:
            state.unread.add(piece)
            self._events.append((Event.CHANGED, state))
        if self._reader.at_boundary:
            self._body_of = (header, None)
            self._on_flags(header, state)

    def _on_flags(self, header: Header, state: StreamState | None) -> None:
        if state is None:
            return
        if header.flags & FIN:
            state.read_ended = True
        if header.flags & RST:
            state.broken = True
            self.outbox.drop(state.id)
        if header.flags & (FIN | RST) or header.kind == WINDOW:
            self._events.append((Event.CHANGED, state))
        self._forget_if_over(state)

    def _accept(self, stream_id: int) -> StreamState | None:
        if stream_id % 2 == self._next_id % 2 or stream_id in self.streams:
            raise ProtocolError(f"the peer cannot open stream {stream_id}")
        if self.over or self._count[False] >= self.max_inbound:
            self.outbox.answer(encode(WINDOW, RST, stream_id, 0))
            return None
        state = StreamState(stream_id, outbound=False)
        self._add(state)
        self.outbox.answer(encode(WINDOW, ACK, stream_id, 0))
        self._events.append((Event.OPENED, state))
        return state

    # -- book-keeping

    def _acknowledge(self, state: StreamState) -> None:
        """Give back the credit of what was read; more when the window, not the reader, holds the far side back."""
        credit, state.unacknowledged = state.unacknowledged, 0
        if not state.unread:
            growth = min(state.window, self.limits.window - state.window, self.limits.window_budget - self._grown)
            state.window += growth
            self._grown += growth
            credit += growth
        state.receive_credit += credit
        self.outbox.put(encode(WINDOW, 0, state.id, credit))

    def _add(self, state: StreamState) -> None:
        self.streams[state.id] = state
        self._count[state.outbound] += 1

    def _drop(self, state: StreamState) -> None:
        state.closed = True
        state.unread.clear()
        self._forget_if_over(state)

    def _forget_if_over(self, state: StreamState) -> None:
        if state.over and self.streams.pop(state.id, None) is not None:
            self._count[state.outbound] -= 1
            self._grown -= state.window - INITIAL_WINDOW
