"""The end of the peer protocol that opened the stream and makes calls."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .errors import PeerMisbehaved
from .frames import Frame, Kind
from .messages import (
    FOLLOW_EVENTS,
    Answered,
    DetachedAs,
    Event,
    Failed,
    Hello,
    Received,
    Request,
    decode,
    unpack_error,
)
from .operation import Operation
from .session import MAX_CALLS, Session

ANSWER_TIMEOUT = 5.0
"""Seconds without a byte of the peer after which the session ends while an answer is awaited."""


class CallerSession(Session):
    """Makes calls, numbered from 1; wait for `Greeted` before the first."""

    def __init__(self, hello: Hello, now: float, idle_timeout: float = 15.0) -> None:
        super().__init__(hello, now, idle_timeout)
        self._credit: dict[int, int] = {}
        # The calls that somebody awaits; a stream of events may be idle for longer.
        self._awaited: set[int] = set()
        self._detachable: set[int] = set()
        self._last_id = 0
        self._send(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(hello)))

    @property
    def in_flight(self) -> int:
        """Calls whose last frame has not come yet."""
        return len(self._credit)

    @property
    def full(self) -> bool:
        """Whether one call more would violate the protocol."""
        return len(self._credit) >= MAX_CALLS

    @property
    def _timeout(self) -> float:
        return min(self._idle_timeout, ANSWER_TIMEOUT) if self._awaited else self._idle_timeout

    def call(self, method: str, request: Request, now: float) -> int:
        """Send a call and return its id. The caller keeps to `full` and to `closed`. Raises: TooLarge."""
        frame = Frame(Kind.CALL, self._last_id + 1, method, msgspec.msgpack.encode(request))
        self._send(frame)
        self._last_id = frame.id
        self._credit[frame.id] = request.credit
        if request.detach:
            self._detachable.add(frame.id)
        if method != FOLLOW_EVENTS:
            self._awaiting_since = self._awaiting_since if self._awaited else now
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
        if len(hello.versions) != 1 or hello.versions[0] not in self._hello.versions:
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
        if frame.kind is Kind.DETACHED and frame.id not in self._detachable:
            raise PeerMisbehaved(f"the peer detached call {frame.id}, which was to be answered")
        self._detachable.discard(frame.id)
        self._awaited.discard(frame.id)
        if frame.kind is Kind.RESULT:
            yield Answered(frame.id, frame.body)
        elif frame.kind is Kind.ERROR:
            yield Failed(frame.id, unpack_error(frame.body))
        else:
            yield DetachedAs(frame.id, decode(frame.body, Operation))
