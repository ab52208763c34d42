"""A session: the control stream on which we call one peer. Cancelling a call's task cancels the call over there."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from ...protocols.access import Role
from ...protocols.caller_session import CallerSession
from ...protocols.errors import Overloaded, PeerUnreachable, TooLarge, TwinshareError
from ...protocols.events import Event as NodeEvent
from ...protocols.messages import (
    FOLLOW_EVENTS,
    Answered,
    Closed,
    DetachedAs,
    Event,
    Failed,
    Follow,
    Greeted,
    Hello,
    Received,
    Request,
    decode,
)
from ...protocols.operation import Detached
from ...protocols.pages import MAX_LIST, PAGES_AHEAD
from ...protocols.session import MAX_TIMEOUT
from ..background import open_background
from .host import DIAL_DEADLINE, Host, PeerId, Stream
from .offload import Decoder, Offload, in_place
from .session_driver import SessionDriver

PROTOCOL = "/twinshare/rpc/1.0.0"
MAX_WAITING = 256
"""Calls that wait for a place among those in flight."""
FEED_CREDIT = 64
"""Events that a peer may send ahead of whoever reads them."""


class _Outcome:
    """What a call came to, once `event` is set."""

    __slots__ = ("body", "error", "event", "pages", "size")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.body = b""
        self.pages: list[bytes] = []
        self.size = 0
        self.error: Exception | None = None

    def settle(self, body: bytes = b"", error: Exception | None = None) -> None:
        self.body, self.error = body, error
        self.event.set()


class PeerSession:
    """Made by `open_peer_session`."""

    def __init__(self, stream: Stream, hello: Hello, peer_timeout: float, offload: Offload) -> None:
        self.peer_id = stream.peer_id
        self._session = CallerSession(hello, trio.current_time(), peer_timeout)
        self._driver = SessionDriver(stream, self._session, self._take)
        self.decoder = Decoder(offload)
        self._outcomes: dict[int, _Outcome] = {}
        self._feeds: dict[int, Feed] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._greeted = trio.Event()
        self.over = trio.Event()

    @property
    def greeting(self) -> Hello:
        """What the peer said of itself."""
        return self._session.greeting or Hello()

    @property
    def in_flight(self) -> int:
        return self._session.in_flight

    @property
    def busy(self) -> bool:
        """Calls are under way; a feed is not one of them, it can begin again."""
        return self.in_flight > len(self._feeds)

    @property
    def error(self) -> TwinshareError | None:
        """Why the session is over; None while it lives. Each time an object of its own, to be raised."""
        closed = self._session.closed
        return closed and TwinshareError.from_wire(closed.to_wire(), closed.status)

    def end(self, error: TwinshareError) -> None:
        """Hang up, telling the peer why."""
        self._driver.close(error)

    async def call(self, method: str, request: Request) -> bytes:
        """The packed answer. Raises: what the owner raised, Detached, PeerUnreachable, Overloaded, TooLarge."""
        return (await self._call(method, request)).body

    async def call_list(self, method: str, request: Request) -> list[bytes]:
        """The packed pages of a list. Raises: as `call`; TooLarge when they have more than `MAX_LIST` bytes."""
        outcome = await self._call(method, msgspec.structs.replace(request, credit=PAGES_AHEAD))
        return [*outcome.pages, outcome.body]

    async def _call(self, method: str, request: Request) -> _Outcome:
        await self._wait_for_room()
        number = self._session.call(method, request, trio.current_time())
        outcome = self._outcomes[number] = _Outcome()
        self._driver.flush()
        try:
            await outcome.event.wait()
        finally:
            if not outcome.event.is_set():
                self._cancel(number)
        if outcome.error is not None:
            raise outcome.error
        return outcome

    @asynccontextmanager
    async def follow(self, follow: Follow) -> AsyncIterator[Feed]:
        """The peer's events. The feed ends when the session does, or when the peer finds us too slow."""
        await self._wait_for_room()
        arguments = msgspec.Raw(msgspec.msgpack.encode(follow))
        request = Request(MAX_TIMEOUT, Role.ADMIN, None, False, FEED_CREDIT, arguments)
        number = self._session.call(FOLLOW_EVENTS, request, trio.current_time())
        feed = self._feeds[number] = Feed(self, number)
        self._outcomes[number] = _Outcome()
        self._driver.flush()
        try:
            yield feed
        finally:
            self._cancel(number)

    async def run(self) -> None:
        """Work the session until it is over."""
        try:
            await self._driver.run()
        finally:
            for outcome in self._outcomes.values():
                outcome.settle(error=self.error or PeerUnreachable("the session was cut off"))
            for feed in self._feeds.values():
                feed.finish()
            self._outcomes.clear()
            self._greeted.set()
            self.over.set()
            self._room.unpark_all()

    async def greet(self) -> None:
        """Wait for the peer's HELLO. Raises: why there is none."""
        with trio.move_on_after(DIAL_DEADLINE):
            await self._greeted.wait()
        if self.error is not None:
            raise self.error
        if not self._greeted.is_set():
            raise PeerUnreachable(f"{self.peer_id} did not say HELLO within {DIAL_DEADLINE:g} s", peer=self.peer_id)

    async def _wait_for_room(self) -> None:
        if self._session.full and self._room.statistics().tasks_waiting >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} calls wait for {self.peer_id}; try again later", retry_after=1)
        while self._session.full and not self._session.closed:
            await self._room.park()
        if self.error is not None:
            raise self.error

    def _cancel(self, number: int) -> None:
        self._feeds.pop(number, None)
        if outcome := self._outcomes.get(number):
            outcome.pages.clear()
            outcome.event.set()
        self._session.cancel(number)
        self._driver.flush()

    def grant(self, number: int, items: int) -> None:
        """Let the peer send more of a feed or a list."""
        self._session.grant(number, items)
        self._driver.flush()

    def _take(self, event: Event) -> None:
        match event:
            case Answered(number, body):
                self._settle(number, body=body)
            case Failed(number, error):
                self._settle(number, error=error)
            case DetachedAs(number, operation):
                self._settle(number, error=Detached(operation))
            case Received(number, _, body) if number in self._feeds:
                self._feeds[number].push(body)
            case Received(number, _, body):
                self._add_page(number, body)
            case Greeted() | Closed():
                self._greeted.set()

    def _add_page(self, number: int, page: bytes) -> None:
        outcome = self._outcomes[number]
        if outcome.event.is_set():  # it was cancelled
            return
        outcome.size += len(page)
        if outcome.size > MAX_LIST:
            outcome.error = TooLarge(f"the peer's list has more than {MAX_LIST} bytes", limit=MAX_LIST)
            self._cancel(number)
            return
        outcome.pages.append(page)
        self.grant(number, 1)

    def _settle(self, number: int, body: bytes = b"", error: Exception | None = None) -> None:
        self._outcomes.pop(number).settle(body, error)
        if feed := self._feeds.pop(number, None):
            feed.finish()
        self._room.unpark()


class Feed:
    """The events of a peer, in order: `async for event in feed`."""

    def __init__(self, session: PeerSession, number: int) -> None:
        self._line, self._number = session, number
        self._items: deque[bytes] = deque()
        self._taken = 0
        self._finished = False
        self._changed = trio.lowlevel.ParkingLot()

    def push(self, item: bytes) -> None:
        self._items.append(item)
        self._changed.unpark_all()

    def finish(self) -> None:
        self._finished = True
        self._changed.unpark_all()

    def __aiter__(self) -> Feed:
        return self

    async def __anext__(self) -> NodeEvent:
        """Raises: PeerMisbehaved."""
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._finished:
                raise StopAsyncIteration
            await self._changed.park()
        self._taken += 1
        if self._taken == FEED_CREDIT // 2:
            self._line.grant(self._number, self._taken)
            self._taken = 0
        return await self._line.decoder.decode(self._items.popleft(), _read_event)


def _read_event(item: bytes) -> NodeEvent:
    return decode(item, NodeEvent)


@asynccontextmanager
async def open_peer_session(
    host: Host,
    peer_id: PeerId,
    hello: Hello,
    peer_timeout: float,
    protocol: str = PROTOCOL,
    offload: Offload = in_place,
) -> AsyncIterator[PeerSession]:
    """Open the control stream to a connected peer and work it. `peer_timeout` is in seconds.

    Raises: PeerUnreachable, Unsupported, and what the peer answers to our HELLO.
    """
    session = PeerSession(await host.open_stream(peer_id, protocol), hello, peer_timeout, offload)
    async with open_background() as nursery:
        nursery.start_soon(session.run)
        await session.greet()
        yield session
