"""The end of the peer protocol that answers calls."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from .errors import PeerMisbehaved, TooLarge, TwinshareError, Unsupported
from .frames import MAX_METHOD, Frame, Kind
from .messages import (
    Called,
    Cancelled,
    Event,
    Granted,
    Hello,
    decode,
    decode_request,
    pack_error,
)
from .operation import Operation
from .session import MAX_CALLS, MAX_CREDIT, MAX_KEY, MAX_TIMEOUT, Session


class OwnerSession(Session):
    """Answers calls."""

    def __init__(self, hello: Hello, now: float, idle_timeout: float = 15.0) -> None:
        super().__init__(hello, now, idle_timeout)
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
        shared = [version for version in self._hello.versions if version in hello.versions]
        if not shared:
            theirs, ours = (", ".join(map(str, versions)) for versions in (hello.versions[:8], self._hello.versions))
            return self.close(Unsupported(f"no common version of the peer protocol: {theirs} there, {ours} here"))
        agreed = msgspec.structs.replace(self._hello, versions=shared[-1:])
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
