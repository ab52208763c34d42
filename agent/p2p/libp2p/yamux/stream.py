"""One stream as trio knows streams; `connection` moves its frames."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import trio

from ...host import PeerId, Stream
from .session import Session
from .state import StreamState


class _OneAtATime:
    """Raises: BusyResourceError in a second task that enters."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self.busy = False

    def __enter__(self) -> None:
        if self.busy:
            raise trio.BusyResourceError(f"another task is {self._doing} this stream")
        self.busy = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.busy = False


class Carrier(Protocol):
    """The connection of a stream, as the stream sees it."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def session(self) -> Session: ...

    @property
    def reason(self) -> str | None: ...

    def wake_writer(self) -> None: ...

    def wait_for_room(self, stream: YamuxStream) -> None: ...

    def forget(self, stream: YamuxStream) -> None: ...


class YamuxStream(Stream):
    """Only the connection makes it. `protocol` is empty until both sides have agreed on one."""

    def __init__(self, connection: Carrier, state: StreamState) -> None:
        self._connection = connection
        self._session = connection.session
        self._state = state
        self._protocol = ""
        self._ahead = b""
        self._sending = _OneAtATime("sending on")
        self._receiving = _OneAtATime("receiving from")
        self._send_lot = trio.lowlevel.ParkingLot()
        self._receive_lot = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<stream {self._state.id} {self._protocol or '(no protocol)'} with {self.peer_id}>"

    @property
    def id(self) -> int:
        return self._state.id

    @property
    def peer_id(self) -> PeerId:
        return self._connection.peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    @property
    def over(self) -> bool:
        """Neither side can do anything more with it."""
        return self._state.over

    def agree(self, protocol: str, ahead: bytes) -> None:
        """Negotiation is done; `ahead` came with its last token and is what the first read returns."""
        self._protocol = protocol
        self._ahead = ahead

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self._sending:
            self._check_sendable()
            await trio.lowlevel.checkpoint()
            with memoryview(data) as view:
                at = 0
                while True:
                    self._check_sendable()
                    accepted = self._session.write(self._state, view[at:])
                    at += accepted
                    self._connection.wake_writer()
                    if at == len(view):
                        return
                    if not accepted:
                        await self._wait_sendable()

    async def wait_send_all_might_not_block(self) -> None:
        with self._sending:
            self._check_sendable()
            await trio.lowlevel.checkpoint()
            while not self._session.writable(self._state):
                await self._wait_sendable()
                self._check_sendable()

    async def send_eof(self) -> None:
        with self._sending:
            if self._state.closed:
                raise trio.ClosedResourceError
            await trio.lowlevel.checkpoint()
            self._session.finish(self._state)
            self._settle()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer or None")
            if max_bytes < 1:
                raise ValueError("max_bytes must be 1 or more")
        with self._receiving:
            if self._ahead or self._state.readable:
                await trio.lowlevel.checkpoint()
            while not (self._ahead or self._state.readable):
                await self._receive_lot.park()
            return self._take(max_bytes)

    async def aclose(self) -> None:
        if not self._state.closed:
            self._session.close(self._state)
            self._settle()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        if not self._state.closed:
            self._session.reset(self._state)
            self._settle()

    def wake(self) -> None:
        """The state changed: let waiting tasks look again."""
        if self._state.readable:
            self._receive_lot.unpark_all()
        self._send_lot.unpark_all()
        if self._state.over:
            self._connection.forget(self)

    def _take(self, most: int | None) -> bytes:
        state = self._state
        if state.closed:
            raise trio.ClosedResourceError
        if self._ahead:
            data = self._ahead[:most]
            self._ahead = self._ahead[len(data) :]
            return data
        if state.unread:
            data = self._session.read(state, most)
            if self._session.outbox.size:
                self._connection.wake_writer()
            return data
        if state.read_ended:
            return b""
        raise trio.BrokenResourceError(self._why_broken())

    def _check_sendable(self) -> None:
        if self._state.closed or self._state.write_ended:
            raise trio.ClosedResourceError
        if self._state.broken:
            raise trio.BrokenResourceError(self._why_broken())

    def _why_broken(self) -> str:
        return f"the connection ended: {self._connection.reason}" if self._session.over else "the peer reset the stream"

    async def _wait_sendable(self) -> None:
        if self._state.send_credit:
            self._connection.wait_for_room(self)
        await self._send_lot.park()

    def _settle(self) -> None:
        """What we did to the state concerns the other tasks of the stream and the wire."""
        self.wake()
        self._connection.wake_writer()
