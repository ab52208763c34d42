"""The owner's end of the peer protocol: each call in a task of its own, through the dispatcher, as the calling peer.

Whatever a peer sends ends at worst its own session; whatever an operation raises is the answer to its call.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import msgspec
import structlog
import trio

from ...protocols.access import AuditSink, Caller, no_audit
from ...protocols.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    OperationCancelled,
    Overloaded,
    TooLarge,
    TwinshareError,
    Unsupported,
)
from ...protocols.events import Event as NodeEvent
from ...protocols.events import EventKind
from ...protocols.messages import FOLLOW_EVENTS, Called, Cancelled, Event, Follow, Granted, Greeted, Hello, Request
from ...protocols.method import Method
from ...protocols.operation import Detached
from ...protocols.owner_session import OwnerSession
from ...protocols.pages import pack_pages
from ...protocols.reading import decode_msgpack
from ...protocols.secrets import has_secrets
from ...protocols.table import Dispatcher
from ...protocols.trace import read_traceparent
from ..trace import follow_trace
from .host import PeerId, Stream
from .offload import Decoder, Offload, in_place
from .session_driver import SessionDriver

log = structlog.get_logger(__name__)
MAX_CALLS_IN_ALL = 256
RESERVED_CALLS = 8
"""Calls of a session that are answered however many those of the others are: a few members could fill all places."""
MAX_REFUSED_KEPT = 1024
"""Bytes of a refused call that the audit log keeps."""

EventSource: TypeAlias = Callable[[int | None], AbstractAsyncContextManager[AsyncIterable[NodeEvent]]]
"""Opens the node's events after a number, as `EventLog.subscribe` does."""


class Neighbours(Protocol):
    """What the owner's end asks about peers."""

    def hello(self) -> Hello:
        """What we say of ourselves."""
        ...

    def caller(self, peer_id: PeerId, method: str, request: Request) -> Caller:
        """As whom a peer's call is made. Raises: Forbidden, RateLimited."""
        ...

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        """A peer has opened its session to us."""
        ...


class PeerServer:
    """Hand `serve` to `Host.serve`. A peer's new session takes the place of its old one.

    `events` is what a peer can follow, None for nothing. `peer_timeout` is in seconds. `audit_sink` gets all changes.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        neighbours: Neighbours,
        events: EventSource | None,
        peer_timeout: float,
        audit_sink: AuditSink = no_audit,
        offload: Offload = in_place,
    ) -> None:
        self.dispatcher, self.neighbours, self.events, self.audit_sink = dispatcher, neighbours, events, audit_sink
        self.offload = offload
        self._timeout = peer_timeout
        self._sessions: dict[PeerId, _Serving] = {}
        self.in_flight = 0

    async def serve(self, stream: Stream) -> None:
        peer_id = stream.peer_id
        session = OwnerSession(self.neighbours.hello(), trio.current_time(), self._timeout)
        serving = _Serving(self, stream, session)
        if former := self._sessions.get(peer_id):
            former.end(OperationCancelled("another session of the same peer took the place of this one"))
        self._sessions[peer_id] = serving
        try:
            await serving.run()
        finally:
            if self._sessions.get(peer_id) is serving:
                del self._sessions[peer_id]


class _Serving:
    """One session of a peer."""

    def __init__(self, server: PeerServer, stream: Stream, session: OwnerSession) -> None:
        self._server, self._session = server, session
        self._peer_id = stream.peer_id
        self._driver = SessionDriver(stream, session, self._take)
        self._decoder = Decoder(server.offload)
        self._scopes: dict[int, trio.CancelScope] = {}
        # Until the arguments are read: a call may last for minutes, and must not keep a frame for as long.
        self._requests: dict[int, Request] = {}
        self._granted = trio.lowlevel.ParkingLot()
        self._nursery: trio.Nursery

    async def run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            error = await self._driver.run()
            log.debug("a peer's session is over", peer=self._peer_id, why=error.message)
            self._nursery.cancel_scope.cancel()

    def end(self, error: TwinshareError) -> None:
        self._driver.close(error)

    def _take(self, event: Event) -> None:
        match event:
            case Called(number, method, request):
                self._begin(number, method, request)
            case Cancelled(number) if number in self._scopes:
                self._scopes[number].cancel()
            case Granted():
                self._granted.unpark_all()
            case Greeted(hello):
                self._server.neighbours.greeted(self._peer_id, hello)

    def _begin(self, number: int, method: str, request: Request) -> None:
        if self._server.in_flight >= MAX_CALLS_IN_ALL and len(self._scopes) >= RESERVED_CALLS:
            busy = Overloaded(f"this node answers {MAX_CALLS_IN_ALL} calls; try again later", retry_after=1)
            self._session.fail(number, busy)
            return
        self._server.in_flight += 1
        self._scopes[number] = trio.CancelScope(deadline=trio.current_time() + request.timeout)
        self._requests[number] = request
        self._nursery.start_soon(self._answer, number, method, request.timeout, name=f"{method} for {self._peer_id}")

    async def _answer(self, number: int, method: str, timeout: float) -> None:
        scope = self._scopes[number]
        try:
            with scope:
                await self._dispatch(number, method)
                return
            if trio.current_time() < scope.deadline:
                self._session.fail(number, OperationCancelled("the caller does not wait any more"))
            else:
                late = DeadlineExceeded(f"{method} was not done within {timeout:g} s")
                self._session.fail(number, late)
        finally:
            del self._scopes[number]
            self._requests.pop(number, None)
            self._server.in_flight -= 1
            self._driver.flush()

    async def _dispatch(self, number: int, method: str) -> None:
        follow_trace(read_traceparent(self._requests[number].traceparent))
        log.debug("a peer calls", method=method[:64], peer=self._peer_id)
        try:
            caller = self._server.neighbours.caller(self._peer_id, method, self._requests[number])
            if method == FOLLOW_EVENTS and self._server.events is not None:
                await self._send_events(number, self._server.events)
                self._session.result(number, b"\xc0")
            else:
                self._session.result(number, await self._call(number, caller, method))
        except TwinshareError as error:
            self._session.fail(number, error)
        except Detached as detached:
            self._session.detach(number, detached.operation)
        except Exception:
            mark = uuid.uuid4().hex[:8]
            log.exception("a bug in a call", mark=mark, method=method, peer=self._peer_id)
            self._session.fail(number, TwinshareError(f"internal error; the log of the node has it as {mark}"))

    async def _call(self, number: int, caller: Caller, name: str) -> bytes:
        method = self._server.dispatcher.table.get(name)
        if method is None:
            agent = self._server.neighbours.hello().agent
            raise Unsupported(
                f"this node runs {agent} and does not know the method '{name[:64]}'; its twinshare may be older",
                method=name[:64], agent=agent,
            )  # fmt: skip
        in_pages = self._requests[number].credit > 0 and method.lists
        packed, arguments = await self._read(caller, method, self._requests.pop(number).arguments)
        async with self._audited(caller, method, packed, arguments):
            if method.local:
                raise Forbidden(f"{name} is for the node's own users; no peer can call it")
            caller.require(method.role, method.name)  # before the arguments: who may not call learns nothing of them
            if not isinstance(arguments, dict):
                raise arguments
            result = await self._server.dispatcher.call(caller, method, arguments)
        await self._driver.wait_until_sent()
        if in_pages:
            return await self._send_pages(number, result)
        return msgspec.msgpack.encode(result)

    async def _read(
        self, caller: Caller, method: Method, sent: msgspec.Raw
    ) -> tuple[bytes, dict[str, Any] | TwinshareError]:
        """Return what of the packed arguments is kept for the audit log, and the arguments or why they are none.

        What is too large is not copied, nor a large call that will be refused, unless it must be kept without its
        secrets.
        """
        size, beginning = memoryview(sent).nbytes, bytes(memoryview(sent)[:MAX_REFUSED_KEPT])
        if size > method.max_arguments:
            return beginning, method.too_large(size)
        looked_into = _allowed(caller, method) or (method.mutates and has_secrets(method.args))
        if size > MAX_REFUSED_KEPT and not looked_into:
            return beginning, TooLarge("the arguments of a refused call were not read")
        packed = bytes(sent)
        try:
            return packed if method.mutates else b"", await self._decoder.decode(packed, method.unpack)
        except (InvalidRequest, TooLarge) as error:
            return beginning, error

    def _audited(
        self, caller: Caller, method: Method, packed: bytes, arguments: dict[str, Any] | TwinshareError
    ) -> AbstractAsyncContextManager[None]:
        """Write down a change without its secrets; of a call that will be refused little is kept.

        Nothing is kept of a method that can have secrets when nobody knows what is in its arguments.
        """
        if not method.mutates:
            return nullcontext()
        on, kept, secret = "", packed, has_secrets(method.args)
        if isinstance(arguments, dict):
            on = method.about(arguments)
            kept = method.pack_without_secrets(arguments) if secret else packed
        elif secret:
            kept = b""
        allowed = _allowed(caller, method)
        limit = method.max_arguments if allowed else MAX_REFUSED_KEPT
        return self._server.audit_sink(
            caller,
            method.name,
            on,
            request=kept if len(kept) <= limit else kept[:MAX_REFUSED_KEPT],
            will_be_refused=not (allowed and isinstance(arguments, dict)),
        )

    async def _send_pages(self, number: int, rows: Iterable[Any]) -> bytes:
        """Send the pages of a list as the caller takes them; return the last, which is the result."""
        page = b""
        for following in pack_pages(rows):
            if page:
                await self._send_item(number, "", page)
            page = following
            await trio.lowlevel.checkpoint()
        return page

    async def _send_item(self, number: int, kind: str, body: bytes) -> None:
        while not self._session.credit(number):
            await self._granted.park()
        await self._driver.wait_until_sent()
        self._session.item(number, kind, body)
        self._driver.flush()

    async def _send_events(self, number: int, source: EventSource) -> None:
        follow = await self._decoder.decode(bytes(self._requests.pop(number).arguments), _read_follow)
        async with source(follow.after) as events:
            async for event in events:
                if follow.types and not event.type.startswith((EventKind.RESET, *follow.types)):
                    continue
                await self._send_item(number, event.type, msgspec.msgpack.encode(event))


def _read_follow(packed: bytes) -> Follow:
    found: Follow = decode_msgpack(packed, Follow)
    return found


def _allowed(caller: Caller, method: Method) -> bool:
    return not method.local and caller.role.includes(method.role)
