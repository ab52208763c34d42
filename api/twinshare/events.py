"""`GET /api/events`: what happens on the node, as server-sent events, from where the client left off.

A client that reads too slowly is cut off and comes back with the number of the last event that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import Annotated, Self

import msgspec
import trio
from msgspec import Meta
from quart import Response
from quart.wrappers.response import ResponseBody

from ...agent.events import HEARTBEAT_EVENT, EventLog
from ...agent.tokens import TokenStore
from ...protocols.access import MAX_INTEGER, Role
from ...protocols.errors import InvalidRequest, Unauthenticated
from ...protocols.events import Event, EventKind
from ...protocols.openapi import Endpoint, Media
from ...protocols.sse import KEEPALIVE, encode_event, encode_start
from ..rest.requests import current_request
from ..rest.routes import Route

# So many events, at most, travel in one write.
BATCH = 256

_MEDIA_TYPE = "text/event-stream"


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`types` are names separated by commas; `vm.*` stands for all that begin with `vm.`."""

    after: Annotated[int, Meta(ge=0, le=MAX_INTEGER, description="send what is kept after this event, too")] | None = (
        None
    )
    types: Annotated[str, Meta(max_length=512)] | None = None


def route(events: EventLog, tokens: TokenStore) -> Route:
    """Return the route of the event stream."""
    encoder = EventEncoder()

    async def view() -> Response:
        request = current_request()
        query = request.query_as(EventsQuery)
        after = _last_id(request.fields.get(b"last-event-id"), query.after)
        if request.method == "HEAD":
            return Response(b"", content_type=_MEDIA_TYPE)
        request.connection.endless = True
        bound = partial(request.bound, tokens)
        body = _EventStream(events, after, _filter(query.types), encoder, bound)
        return Response(body, content_type=_MEDIA_TYPE, headers={"x-accel-buffering": "no"})

    endpoint = Endpoint(
        verb="GET",
        path="/api/events",
        operation_id="events",
        summary="Listen to what happens on the node, as server-sent events.",
        tag="events",
        answers={200: Media({"type": "string"}, _MEDIA_TYPE, "A stream of events, without an end.")},
        role=Role.VIEWER,
        query=EventsQuery,
    )
    return Route("GET", "/api/events", "events", view, endpoint)


def _last_id(header: bytes | None, after: int | None) -> int | None:
    """A browser that reconnects sends the header beside the address it began with: the header is newer."""
    if header is None:
        return after
    if not (header.isdigit() and len(header) <= 18):
        raise InvalidRequest("Last-Event-ID is the number of an event", path="Last-Event-ID")
    return int(header)


def _filter(types: str | None) -> Callable[[str], bool]:
    """Return whether an event's name is asked for; None asks for all."""
    if types is None:
        return lambda _: True
    names = [name.strip() for name in types.split(",")]
    whole, beginnings = frozenset(names), tuple(name[:-1] for name in names if name.endswith("*"))
    return lambda name: name in whole or name.startswith(beginnings)


class EventEncoder:
    """Encodes an event once for all its listeners, who take it one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Event, bytes] = (HEARTBEAT_EVENT, KEEPALIVE)

    def encode(self, event: Event) -> bytes:
        if self._last[0] is not event:
            self._last = (event, KEEPALIVE if event is HEARTBEAT_EVENT else encode_event(event))
        return self._last[1]


class _EventStream(ResponseBody):
    """The body of one listener's response: a subscription for as long as it is sent."""

    def __init__(
        self,
        events: EventLog,
        after: int | None,
        is_wanted: Callable[[str], bool],
        encoder: EventEncoder,
        bound: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._events, self._after, self._is_wanted = events, after, is_wanted
        self._encoder, self._bound = encoder, bound
        self._subscription = AsyncExitStack()
        self._start = b""
        self._channel: trio.MemoryReceiveChannel[Event]

    async def __aenter__(self) -> Self:
        self._channel = await self._subscription.enter_async_context(
            self._events.subscribe(self._after, heartbeat=True)
        )
        self._start = encode_start(self._events.last_id if self._after is None else self._after)
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._subscription.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next part; the end comes when the client is too slow (that ends the channel) or with its token."""
        data, self._start = self._start, b""
        while not data:
            try:
                with self._bound():
                    data = self._batch(await self._channel.receive())
            except (trio.EndOfChannel, Unauthenticated):
                raise StopAsyncIteration from None
        return data

    def _batch(self, event: Event) -> bytes:
        """Return an event and those that wait behind it."""
        batch = [event]
        while len(batch) < BATCH:
            try:
                batch.append(self._channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        wanted = (
            event
            for event in batch
            if event.type in {HEARTBEAT_EVENT.type, EventKind.RESET} or self._is_wanted(event.type)
        )
        return b"".join(self._encoder.encode(event) for event in wanted)
