"""The peer protocol as a state machine: bytes and the time go in, events and bytes come out.

A session lives on one stream that its caller has opened: `CallerSession` makes calls on it, `OwnerSession` answers
them. Both begin with HELLO, agree on a version, keep the stream alive, and close for good at the first breach.
Every call gets exactly one last frame (RESULT, ERROR or DETACHED), a cancelled one too: so both ends agree on how many
are in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import msgspec

from .errors import PeerMisbehaved, PeerUnreachable, TooLarge, TwinshareError, Unsupported
from .frames import MAX_METHOD, Frame, FrameReader, Kind, encode
from .messages import (
    Answered,
    Called,
    Cancelled,
    Closed,
    DetachedAs,
    Event,
    Failed,
    Granted,
    Greeted,
    Hello,
    Received,
    Request,
    decode,
    decode_request,
    pack_error,
    unpack_error,
)
from .operation import Operation

MAX_CALLS = 64
"""Calls in flight on one session."""
MAX_CREDIT = 1024
"""Items that a stream's reader can allow ahead."""
MAX_TIMEOUT = 24 * 3600.0
"""Seconds that a call's deadline can lie ahead."""
MAX_KEY = 255
"""Characters of an idempotency key."""
PATIENCE = 5.0
"""Seconds that a peer may say nothing while somebody waits for its answer."""


class Session(ABC):
    """What both ends share: frames, HELLO, keepalive, the end. `silence` is how many seconds a peer may say nothing."""

    def __init__(self, hello: Hello, now: float, silence: float) -> None:
        self._mine = hello
        self._silence = silence
        self._heard_at = now
        self._asked_at = now
        self._waits_since = now
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._out_size = 0
        self.greeting: Hello | None = None
        self.closed: TwinshareError | None = None

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return min(self._asks_at, self._gives_up_at)

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        return self._out_size

    def data_to_send(self) -> bytes:
        """What to write now; it is given out once."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        return data

    def receive(self, data: bytes | bytearray, now: float) -> Iterator[Event]:
        """Take bytes of the peer; no bytes mean that it has ended the stream. Take every event."""
        if self.closed:
            return
        self._heard_at = now
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
        """Ask a silent peer whether it lives, or give it up."""
        if self.closed:
            return
        if now >= self._gives_up_at:
            yield self._end(PeerUnreachable(f"the peer has said nothing for {now - self._heard_at:.0f} s"))
        elif now >= self._asks_at:
            self._asked_at = now
            self._send(Frame(Kind.PING, 0))

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
    def _patience(self) -> float:
        return self._silence

    @property
    def _asks_at(self) -> float:
        return max(self._heard_at, self._asked_at) + self._patience / 3

    @property
    def _gives_up_at(self) -> float:
        return max(self._heard_at, self._waits_since) + self._patience

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


class CallerSession(Session):
    """The end that opened the stream. Calls are numbered from 1; wait for `Greeted` before the first."""

    def __init__(self, hello: Hello, now: float, silence: float = 15.0) -> None:
        super().__init__(hello, now, silence)
        self._credit: dict[int, int] = {}
        # The calls of which somebody waits for the answer; a stream is patient.
        self._awaited: set[int] = set()
        self._last_id = 0
        self._send(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(hello)))

    @property
    def in_flight(self) -> int:
        """Calls whose last frame has not come yet."""
        return len(self._credit)

    @property
    def full(self) -> bool:
        """Whether one call more would be a breach of the protocol."""
        return len(self._credit) >= MAX_CALLS

    @property
    def _patience(self) -> float:
        return min(self._silence, PATIENCE) if self._awaited else self._silence

    def call(self, method: str, request: Request, now: float) -> int:
        """Send a call and return its id. The caller keeps to `full` and to `closed`. Raises: TooLarge."""
        frame = Frame(Kind.CALL, self._last_id + 1, method, msgspec.msgpack.encode(request))
        self._send(frame)
        self._last_id = frame.id
        self._credit[frame.id] = request.credit
        if not request.credit:
            self._waits_since = self._waits_since if self._awaited else now
            self._awaited.add(frame.id)
        return frame.id

    def cancel(self, id: int) -> None:
        """Tell the owner that nobody waits; the call stays in flight until its last frame arrives."""
        if id in self._credit:
            self._send(Frame(Kind.CANCEL, id))

    def grant(self, id: int, items: int) -> None:
        """Allow `items` more of a stream."""
        if id in self._credit:
            self._credit[id] += items
            self._send(Frame(Kind.CREDIT, id, "", msgspec.msgpack.encode(items)))

    def _greet(self, hello: Hello) -> Event:
        if len(hello.versions) != 1 or hello.versions[0] not in self._mine.versions:
            raise PeerMisbehaved(f"the peer chose version {hello.versions}, which we did not offer")
        return super()._greet(hello)

    def _take_call_frame(self, frame: Frame) -> Iterator[Event]:
        if frame.kind not in {Kind.RESULT, Kind.ERROR, Kind.DETACHED, Kind.ITEM} or frame.id not in self._credit:
            raise PeerMisbehaved(f"the peer sent {frame.kind.name} for call {frame.id}, which is not in flight")
        if frame.kind is Kind.ITEM:
            if self._credit[frame.id] < 1:
                raise PeerMisbehaved(f"the peer sent more items of call {frame.id} than it was allowed")
            self._credit[frame.id] -= 1
            yield Received(frame.id, frame.method, frame.body)
            return
        del self._credit[frame.id]
        self._awaited.discard(frame.id)
        if frame.kind is Kind.RESULT:
            yield Answered(frame.id, frame.body)
        elif frame.kind is Kind.ERROR:
            yield Failed(frame.id, unpack_error(frame.body))
        else:
            yield DetachedAs(frame.id, decode(frame.body, Operation))


class OwnerSession(Session):
    """The end that answers."""

    def __init__(self, hello: Hello, now: float, silence: float = 15.0) -> None:
        super().__init__(hello, now, silence)
        self._credit: dict[int, int] = {}
        self._last_id = 0

    @property
    def in_flight(self) -> int:
        return len(self._credit)

    def credit(self, id: int) -> int:
        """How many items of a stream the caller still takes."""
        return self._credit.get(id, 0)

    def result(self, id: int, body: bytes) -> None:
        """Answer the call; a body that no frame can carry becomes the error `too_large`. A second answer is dropped."""
        self._answer(id, Frame(Kind.RESULT, id, "", body))

    def fail(self, id: int, error: TwinshareError) -> None:
        """Answer the call with an error."""
        self._answer(id, Frame(Kind.ERROR, id, "", pack_error(error)))

    def detach(self, id: int, operation: Operation) -> None:
        """Answer a call that wanted to be detached with its operation, which goes on."""
        self._answer(id, Frame(Kind.DETACHED, id, "", msgspec.msgpack.encode(operation)))

    def item(self, id: int, kind: str, body: bytes) -> None:
        """Send one item of a stream; only with `credit`. Raises: TooLarge."""
        self._send(Frame(Kind.ITEM, id, kind, body))
        self._credit[id] -= 1

    def _answer(self, id: int, frame: Frame) -> None:
        if self._credit.pop(id, None) is None:
            return
        try:
            self._send(frame)
        except TooLarge as error:
            self._send(Frame(Kind.ERROR, id, "", pack_error(TooLarge(f"the answer is too large: {error.message}"))))

    def _greet(self, hello: Hello) -> Event:
        shared = [version for version in self._mine.versions if version in hello.versions]
        if not shared:
            theirs, ours = (", ".join(map(str, versions)) for versions in (hello.versions[:8], self._mine.versions))
            return self.close(Unsupported(f"no common version of the peer protocol: {theirs} there, {ours} here"))
        agreed = msgspec.structs.replace(self._mine, versions=shared[-1:])
        self._send(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(agreed)))
        return super()._greet(hello)

    def _take_call_frame(self, frame: Frame) -> Iterator[Event]:
        if frame.kind is Kind.CALL:
            yield from self._take_call(frame)
        elif frame.kind not in {Kind.CANCEL, Kind.CREDIT} or not 0 < frame.id <= self._last_id:
            raise PeerMisbehaved(f"the peer sent {frame.kind.name} for call {frame.id}, which it never made")
        elif frame.kind is Kind.CREDIT:
            items = decode(frame.body, int)
            if not 0 < items <= MAX_CREDIT:
                raise PeerMisbehaved(f"the peer allowed {items} items; 1 to {MAX_CREDIT} make sense")
            if frame.id in self._credit:
                self._credit[frame.id] = min(self._credit[frame.id] + items, MAX_CREDIT)
                yield Granted(frame.id)
        elif frame.id in self._credit:
            yield Cancelled(frame.id)

    def _take_call(self, frame: Frame) -> Iterator[Event]:
        if frame.id <= self._last_id:
            raise PeerMisbehaved(f"the peer used the call id {frame.id} again")
        if not frame.method or len(frame.method) > MAX_METHOD:
            raise PeerMisbehaved("the peer made a call without a method")
        if len(self._credit) >= MAX_CALLS:
            raise PeerMisbehaved(f"the peer has more than {MAX_CALLS} calls in flight")
        request = decode_request(frame.body)
        if not (0 <= request.timeout <= MAX_TIMEOUT and 0 <= request.credit <= MAX_CREDIT):
            raise PeerMisbehaved("the peer made a call whose header is out of bounds")
        if request.key is not None and len(request.key) > MAX_KEY:
            raise PeerMisbehaved("the peer made a call whose idempotency key is too long")
        self._last_id = frame.id
        self._credit[frame.id] = request.credit
        yield Called(frame.id, frame.method, request)
