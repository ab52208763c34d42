"""The peer protocol as a state machine: bytes and the time go in, events and bytes come out.

A session lives on one stream that its caller has opened: `CallerSession` makes calls on it, `OwnerSession` answers
them. Both begin with HELLO, agree on a version, send keepalives, and close at the first violation of the protocol.
Every call gets exactly one last frame (RESULT, ERROR or DETACHED), a cancelled one too: so both ends agree on how many
are in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from .errors import PeerMisbehaved, PeerUnreachable, TwinshareError
from .frames import Frame, FrameReader, Kind, encode
from .messages import (
    Closed,
    Event,
    Greeted,
    Hello,
    decode,
    pack_error,
    unpack_error,
)

MAX_CALLS = 64
"""Calls in flight on one session."""
MAX_CREDIT = 1024
"""Items that a stream's reader can allow ahead."""
MAX_TIMEOUT = 24 * 3600.0
"""Seconds that a call's deadline can lie ahead."""
MAX_KEY = 255
"""Characters of an idempotency key."""


class Session(ABC):
    """What both ends share: frames, HELLO, keepalive, the end.

    `idle_timeout` is the time in seconds without a byte of the peer after which the session ends.
    """

    def __init__(self, hello: Hello, now: float, idle_timeout: float) -> None:
        self._hello = hello
        self._idle_timeout = idle_timeout
        self._received_at = now
        self._pinged_at = now
        self._awaiting_since = now
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._out_size = 0
        self.greeting: Hello | None = None
        self.closed: TwinshareError | None = None

    @property
    def next_tick(self) -> float:
        """The time at which `tick` has something to do."""
        return min(self._pings_at, self._expires_at)

    @property
    def pending(self) -> int:
        """Bytes that `data_to_send` would return."""
        return self._out_size

    def data_to_send(self) -> bytes:
        """Return the bytes to write, once."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        return data

    def receive(self, data: bytes | bytearray, now: float) -> Iterator[Event]:
        """Take bytes of the peer, none at the end of its stream. The caller must take every event."""
        if self.closed:
            return
        self._received_at = now
        if not data:
            yield self._end(PeerUnreachable("the peer has closed the connection"))
            return
        try:
            for frame in self._reader.feed(data):
                yield from self._take(frame)
                if self.closed:
                    return
        except PeerMisbehaved as error:
            yield self.close(error)

    def tick(self, now: float) -> Iterator[Event]:
        """Send a keepalive to an idle peer, or end the session after the timeout."""
        if self.closed:
            return
        if now >= self._expires_at:
            yield self._end(PeerUnreachable(f"the peer has sent nothing for {now - self._received_at:.0f} s"))
        elif now >= self._pings_at:
            self._pinged_at = now
            self._send(Frame(Kind.PING, 0))

    def discount(self, seconds: float) -> None:
        """Do not take the `seconds` before now, in which this node did not run, for silence of the peer."""
        self._received_at += seconds
        self._pinged_at += seconds
        self._awaiting_since += seconds

    def close(self, error: TwinshareError) -> Closed:
        """End the session and tell the peer why."""
        if not self.closed:
            self._send(Frame(Kind.GOODBYE, 0, "", pack_error(error)))
        return self._end(error)

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Calls without their last frame."""

    @property
    def _timeout(self) -> float:
        return self._idle_timeout

    @property
    def _pings_at(self) -> float:
        return max(self._received_at, self._pinged_at) + self._timeout / 3

    @property
    def _expires_at(self) -> float:
        return max(self._received_at, self._awaiting_since) + self._timeout

    def _end(self, error: TwinshareError) -> Closed:
        self.closed = self.closed or error
        return Closed(self.closed)

    def _send(self, frame: Frame) -> None:
        if not self.closed:
            data = encode(frame)
            self._out.append(data)
            self._out_size += len(data)

    def _take(self, frame: Frame) -> Iterator[Event]:
        if frame.kind is Kind.GOODBYE:
            yield self._end(unpack_error(frame.body))
        elif frame.kind is Kind.HELLO and self.greeting is None:
            yield self._greet(decode(frame.body, Hello))
        elif self.greeting is None:
            raise PeerMisbehaved(f"the peer sent {frame.kind.name} before HELLO")
        elif frame.kind is Kind.PING:
            self._send(Frame(Kind.PONG, frame.id))
        elif frame.kind is not Kind.PONG:
            yield from self._take_call_frame(frame)

    def _greet(self, hello: Hello) -> Event:
        self.greeting = hello
        return Greeted(hello)

    @abstractmethod
    def _take_call_frame(self, frame: Frame) -> Iterator[Event]: ...
