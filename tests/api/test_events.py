"""The event stream: numbered, replayed from where a client left off, filtered, kept alive, cut for who is too slow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.agent.probe import probe
from tests.api.served import SPEC, Served, served
from tests.stopwatch import within
from twinshare.agent import events
from twinshare.protocols.access import Role
from twinshare.protocols.events import Event
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.sse import EventReader


class Listener:
    """One client of the stream, as the wire has it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.text = b""
        self._reader = EventReader()
        self._events: list[Event] = []

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.text:
            self.text += await self.stream.receive_some()
            self._take(self.text.partition(b"\r\n\r\n")[2])
        return self.text.partition(b"\r\n\r\n")[0]

    def _take(self, data: bytes) -> None:
        """Chunk sizes look like fields without a name to the reader, which passes over them."""
        self._events += self._reader.feed(data.replace(b"\r\n", b"\n:"))

    async def next(self) -> Event:
        """The next event."""
        with trio.fail_after(60):
            while not self._events:
                data = await self.stream.receive_some()
                assert data, "the stream has ended"
                self.text += data
                self._take(data)
        return self._events.pop(0)


@asynccontextmanager
async def listening(api: Served, query: str = "", last: int | None = None) -> AsyncIterator[Listener]:
    header = f"Last-Event-ID: {last}\r\n" if last is not None else ""
    async with await trio.open_tcp_stream(*api.address) as stream:
        await stream.send_all(f"GET /api/events{query} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        listener = Listener(stream)
        await listener.head()
        yield listener


async def test_what_happens_is_published(tmp_path: Path) -> None:
    async with served(tmp_path) as api, listening(api) as listener:
        assert b"content-type: text/event-stream" in await listener.head()
        await api.client.post("/api/vm", json=SPEC)
        kinds = []
        while "op.done" not in kinds:
            event = await listener.next()
            kinds.append(event.type)
        assert "vm.state" in kinds
        assert event.data["kind"] == "create_vm"


async def test_a_client_that_comes_back_gets_what_it_missed(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        async with listening(api) as listener:
            api.node.events.publish(probe("test.one", n=1))
            first = await listener.next()
        for n in range(2, 40):
            api.node.events.publish(probe("test.more", n=n))
        async with listening(api, last=first.id) as listener:
            missed = [await listener.next() for _ in range(38)]
            assert [event.data["n"] for event in missed] == list(range(2, 40))
            assert [event.id for event in missed] == list(range(first.id + 1, first.id + 39))
            api.node.events.publish(probe("test.live", n=40))
            assert (await listener.next()).id == first.id + 39
        async with listening(api, query=f"?after={first.id}", last=first.id + 38) as listener:
            assert (await listener.next()).data["n"] == 40


async def test_events_survive_the_node(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.client.post("/api/vm", json=SPEC)
        last = api.node.events.last_id
    async with served(tmp_path) as api, listening(api, query="?after=0&types=vm.state") as listener:
        event = await listener.next()
        assert (event.type, event.data["name"]) == ("vm.state", "one")
        assert event.id <= last


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ("test.a", ["test.a"]),
        ("test.a,test.b", ["test.a", "test.b"]),
        ("test.*", ["test.a", "test.b"]),
        ("other.*", ["other.c"]),
    ],
)
async def test_a_filter(types: str, wanted: list[str], tmp_path: Path) -> None:
    async with served(tmp_path) as api, listening(api, query=f"?types={types}") as listener:
        for name in ("test.a", "test.b", "other.c"):
            api.node.events.publish(probe(name))
        assert [(await listener.next()).type for _ in wanted] == wanted


async def test_a_quiet_stream_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.05)
    async with served(tmp_path) as api, listening(api) as listener:
        with trio.fail_after(60):
            while listener.text.count(b"\n:\n") < 3:
                listener.text += await listener.stream.receive_some()


async def test_who_goes_away_is_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        async with listening(api):
            assert len(api.node.events._listeners) == 1
        with trio.fail_after(60):
            while api.node.events._listeners:
                await trio.sleep(0.01)


async def test_a_revoked_token_ends_its_streams_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        headers = {"authorization": f"Bearer {made.secret}"}
        async with api.client.stream("GET", "/api/events", headers=headers) as stream:
            await api.node.tokens.revoke("x")
            api.node.events.publish(probe("test.secret"))
            with within(1):
                assert b"test.secret" not in await stream.aread()


async def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER, expires_in=1))
        headers = {"authorization": f"Bearer {made.secret}"}
        async with api.client.stream("GET", "/api/events", headers=headers) as stream:
            with within(3):
                await stream.aread()


async def test_head_has_no_body(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        answer = await api.client.head("/api/events")
        assert answer.headers["content-type"] == "text/event-stream"
        assert (await api.client.head("/api/vm")).content == b""


async def test_b6_a_number_beyond_the_newest_event_resets_the_listener(tmp_path: Path) -> None:
    """After its database was lost a node was silent to whoever came back with a number from before."""
    async with served(tmp_path) as api:
        before = api.node.events.last_id
        async with listening(api, "?types=vm.*", last=10**12) as listener:
            first = await listener.next()
            assert first.type == "reset"
            # What a node that starts publishes may come before the listener or after it.
            assert before <= first.id <= api.node.events.last_id
            await api.client.post("/api/vm", json=SPEC)
            assert (await listener.next()).type == "vm.state"
