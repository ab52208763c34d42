"""`GET /api/events`: what happens on the node, as server-sent events, from where the client left off.

A client that reads too slowly is cut off and comes back with the number of the last event that it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from ...agent.events import EventLog
from ...protocols.access import Caller, Role
from ...protocols.errors import InvalidRequest
from ...protocols.event import Event
from ...protocols.openapi import Endpoint, Media
from ...protocols.sse import KEEPALIVE, encode_event, encode_start
from .answer import PROTECTION, Answer, Header
from .request import Request
from .router import Route

HEARTBEAT = 15.0
# So many events, at most, travel in one write.
BATCH = 256

_MEDIA_TYPE = b"text/event-stream"
_HEAD: list[Header] = [(b"content-type", _MEDIA_TYPE), *PROTECTION, (b"x-accel-buffering", b"no")]


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`types` are names separated by commas; `vm.*` stands for all that begin with `vm.`."""

    after: Annotated[int, Meta(ge=0, description="send what is kept after this event, too")] | None = None
    types: Annotated[str, Meta(max_length=512)] | None = None


Holds = Callable[[Caller], bool]


def route(events: EventLog, holds: Holds) -> Route:
    """The route of the event stream. `holds` tells whether a caller may still come in."""

    async def view(request: Request) -> Answer | None:
        query = request.fields(EventsQuery)
        after = _last_id(request.headers.get(b"last-event-id"), query.after)
        if request.verb == "HEAD":
            return Answer(200, b"", _MEDIA_TYPE)
        request.link.endless = True
        async with events.subscribe(after) as channel:
            start = encode_start(events.last_id if after is None else after)
            await request.begin(_HEAD)
            await request.feed(start)
            await _tell(request, channel, _wanted(query.types), holds)
        return None

    told = Endpoint(
        verb="GET",
        path="/api/events",
        operation_id="events",
        summary="Listen to what happens on the node, as server-sent events.",
        tag="events",
        answers={200: Media({"type": "string"}, _MEDIA_TYPE.decode(), "A stream of events, without an end.")},
        role=Role.VIEWER,
        query=EventsQuery,
    )
    return Route("GET", "/api/events", "events", view, told)


def _last_id(header: bytes | None, after: int | None) -> int | None:
    """A browser that reconnects sends the header beside the address it began with: the header is newer."""
    if header is None:
        return after
    if not (header.isdigit() and len(header) <= 18):
        raise InvalidRequest("Last-Event-ID is the number of an event", path="Last-Event-ID")
    return int(header)


def _wanted(types: str | None) -> tuple[frozenset[str], tuple[str, ...]] | None:
    """The whole names and the beginnings of names that are asked for; None asks for all."""
    if types is None:
        return None
    names = [name.strip() for name in types.split(",")]
    return frozenset(names), tuple(name[:-1] for name in names if name.endswith("*"))


async def _tell(
    request: Request,
    channel: trio.MemoryReceiveChannel[Event],
    wanted: tuple[frozenset[str], tuple[str, ...]] | None,
    holds: Holds,
) -> None:
    """Send events until the client is gone (which cancels this), too slow (which ends the channel) or locked out."""
    while holds(request.caller):
        data = KEEPALIVE
        with trio.move_on_after(HEARTBEAT):
            try:
                batch = [await channel.receive()]
            except trio.EndOfChannel:
                break
            try:
                while len(batch) < BATCH:
                    batch.append(channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                pass
            data = b"".join(encode_event(event) for event in batch if _is_wanted(event.type, wanted))
        if data and holds(request.caller):
            await request.feed(data)
    await request.feed(b"", more=False)


def _is_wanted(type: str, wanted: tuple[frozenset[str], tuple[str, ...]] | None) -> bool:
    return wanted is None or type in wanted[0] or type.startswith(wanted[1])
