"""Events through RESTClient: in order, once each, across lost connections."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from tests.api.recorded import Answer, recorded_node
from twinshare.api import retry
from twinshare.api.rest_client import NodeUnreachable, RESTClient
from twinshare.protocols.errors import Unauthenticated
from twinshare.protocols.events import Event
from twinshare.protocols.sse import KEEPALIVE, encode_event, encode_start

Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]
STREAM = "GET /api/events"


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    def under_asyncio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(main())

    return trio.run if request.param == "trio" else under_asyncio


def events_with(*ids: int) -> bytes:
    events = [Event(id=number, type="vm.state", at=datetime(2025, 5, 10, tzinfo=UTC)) for number in ids]
    return KEEPALIVE + b"".join(encode_event(event) for event in events)


def stream(content: bytes, cut: int | None = None) -> Answer:
    return Answer(content, media_type="text/event-stream", cut=len(content) if cut is None else cut)


async def first(client: RESTClient, count: int, after: int | None = None) -> list[int]:
    found: list[int] = []
    async with client.events(after) as events:
        async for event in events:
            found.append(event.id)
            if len(found) == count:
                break
    return found


def collect(run: Run, url: str, count: int, after: int | None = None) -> list[int]:
    async def main() -> list[int]:
        async with RESTClient(url) as client:
            return await first(client, count, after)

    found: list[int] = run(main)
    # A generator that was left half-way would warn here.
    gc.collect()
    return found


def test_events_are_printed_once_across_lost_connections(run: Run) -> None:
    half = events_with(4, 5)
    with recorded_node(
        {STREAM: [stream(events_with(1, 2, 3)), stream(half, len(half) - 9), stream(events_with(5, 6))]}
    ) as node:
        assert collect(run, node.url, 6, after=0) == [1, 2, 3, 4, 5, 6]
    assert [seen.headers["last-event-id"] for seen in node.seen] == ["0", "3", "4"]


def test_without_a_start_it_begins_with_now(run: Run) -> None:
    with recorded_node({STREAM: [stream(events_with(7))]}) as node:
        assert collect(run, node.url, 1) == [7]
    assert "last-event-id" not in node.seen[0].headers


def test_a_stream_that_breaks_before_its_first_event_resumes_where_it_began(run: Run) -> None:
    with recorded_node({STREAM: [stream(encode_start(6)), stream(events_with(7))]}) as node:
        assert collect(run, node.url, 1) == [7]
    assert node.seen[1].headers["last-event-id"] == "6"


def test_a_refusal_is_raised(run: Run) -> None:
    refused = Answer({"error": "no token", "code": "unauthenticated"}, 401)
    with recorded_node({STREAM: [refused]}) as node, pytest.raises(Unauthenticated, match="no token"):
        collect(run, node.url, 1)


def test_a_node_that_stays_away_ends_the_stream(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETURN_WITHIN", 0.4)
    with recorded_node({STREAM: [stream(events_with(1)), Answer(cut=0)]}) as node, pytest.raises(NodeUnreachable):
        collect(run, node.url, 2)


def test_a_listener_that_is_cancelled_leaves_the_client_sound() -> None:
    """The server keeps the stream open and silent; the listener is cancelled while it waits."""

    async def main(url: str) -> list[int]:
        async with RESTClient(url) as client:
            async with client.events(0) as events:
                assert (await anext(events)).id == 1
                with trio.move_on_after(0.1) as scope:
                    await anext(events)
                assert scope.cancelled_caught
            return await first(client, 1, after=1)

    # Announced more than is sent: the client waits for the rest.
    silent = Answer(events_with(1), media_type="text/event-stream")
    with recorded_node({STREAM: [silent, stream(events_with(2))]}) as node:
        assert trio.run(main, node.url) == [2]
