"""The serial console as a websocket: who gets one, what it carries, what ends it, and what strangers try with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from tests.agent.nodes import spec
from tests.agent.test_consoles import hear
from tests.api.served import SPEC, Served, served, talk
from tests.nodes.test_in_memory import TABLE
from tests.nodes.test_tunnels import pair
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.reach.consoles import MAX_CLIENTS
from twinshare.api.rest_client import NodeUnreachable, RESTClient
from twinshare.api.server import open_api, serve
from twinshare.api.twinshare import relay
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import (
    Forbidden,
    InvalidRequest,
    Overloaded,
    P2pStopped,
    PeerNotFound,
    PeerUnreachable,
    TwinshareError,
    Unauthenticated,
    Unavailable,
    VmNotFound,
    WrongState,
)
from twinshare.protocols.node import TokenRequest

PATH = "/api/vm/one/console"
SCREEN = "/api/vm/one/screen"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@asynccontextmanager
async def running(folder: Path, **api: Any) -> AsyncIterator[tuple[Served, MemoryHypervisor, str]]:
    """A served node with the running VM `one`, and its id."""
    async with served(folder, **api) as node:
        made = await node.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        hypervisor = node.node.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        yield node, hypervisor, made.id


async def nobody_listens(api: Served) -> None:
    with trio.fail_after(60):
        while api.node.consoles._connections:
            await trio.sleep(0.01)


class Raw:
    """A websocket whose every byte a test decides."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = Connection(ConnectionType.CLIENT)

    async def send(self, event: Any) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def events(self) -> AsyncGenerator[Any, None]:
        """Until the server closes the connection."""
        with within(10):
            while True:
                data = await self.stream.receive_some(65536)
                self.protocol.receive_data(data or None)
                for event in self.protocol.events():
                    yield event
                if not data:
                    return

    async def next(self, kind: type[Any]) -> Any:
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"no {kind.__name__} came")


def handshake(path: str = PATH, **headers: str) -> bytes:
    fields = {
        "Host": "localhost", "Connection": "keep-alive, Upgrade", "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
    } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
    return f"GET {path} HTTP/1.1\r\n".encode() + b"".join(f"{k}: {v}\r\n".encode() for k, v in fields.items()) + b"\r\n"


@asynccontextmanager
async def raw(api: Served, path: str = PATH, **headers: str) -> AsyncIterator[Raw]:
    async with await trio.open_tcp_stream(*api.address) as stream:
        await stream.send_all(handshake(path, **headers))
        head = b""
        with trio.fail_after(60):
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1)
        assert head.startswith(b"HTTP/1.1 101"), head
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert b"sec-websocket-extensions" not in head.lower()
        yield Raw(stream)


def test_typing_and_listening_under_both_loops(tmp_path: Path) -> None:
    async def converse(url: str) -> None:
        async with RESTClient(url) as client, client.console("one") as console:
            said = bytes(range(14, 256)) * 1000
            heard = b""
            await console.send(said)
            while len(heard) < len(said):
                heard += await console.receive()
            assert heard == said

    async def main() -> None:
        async with running(tmp_path) as (api, hypervisor, id):
            with trio.fail_after(30):
                await converse(api.url)
                await trio.to_thread.run_sync(asyncio.run, converse(api.url))
            async with RESTClient(api.url) as client, client.console(id) as one, client.console("one") as two:
                await two.send(b"hello\r")
                assert [await hear(one, 7), await hear(two, 7)] == [b"hello\r\n"] * 2
                hypervisor.power_off(id)
                assert [data async for data in one] == []
                assert one.end == "VM 'one' has stopped"
                await two.send(b"nobody reads this")
                assert await two.receive() == b""
            await nobody_listens(api)

    trio.run(main)


async def refused(client: RESTClient, kind: type[TwinshareError], said: str, vm: str = "one", peer: Any = None) -> None:
    with pytest.raises(kind, match=said):
        async with client.console(vm, peer):
            raise AssertionError("it was opened")


async def test_what_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, _id), RESTClient(api.url) as client:
        await api.client.post("/api/vm", json={**SPEC, "name": "off"})
        await refused(client, VmNotFound, "nope", vm="nope")
        await refused(client, WrongState, "start it first", vm="off")
        await refused(client, InvalidRequest, "vm", vm="x" * 300)
        await refused(client, PeerNotFound, "nobody", peer="nobody")
        for plain in (PATH, "/api/vm/nope/console", "/api/remote/nobody/vm/x/console"):
            answer = await api.client.get(plain)
            assert (answer.status_code, answer.json()["code"]) == (426, "upgrade_required")
            assert answer.headers["upgrade"] == "websocket"
        for wrong in (f"{PATH}?x=1", f"/api/vm/{'x' * 300}/console"):
            assert (await api.client.get(wrong)).status_code == 400
        assert (await api.client.post(PATH)).status_code == 405
        async with AsyncExitStack() as stack:
            for _ in range(MAX_CLIENTS):
                await stack.enter_async_context(client.console("one", "local"))
            await refused(client, Overloaded, "8 clients")
        await nobody_listens(api)


async def test_who_may(tmp_path: Path) -> None:
    async with running(tmp_path, auth="token", rate=1000.0, burst=1000) as (api, _, _id):
        secrets = {
            role: (await api.node.tokens.create(TokenRequest(name=f"a-{role}", role=role))).secret for role in Role
        }
        theirs = {"authorization": f"Bearer {secrets[Role.OPERATOR]}"}
        await api.client.post("/api/vm", json={**SPEC, "name": "theirs", "start": True}, headers=theirs)
        for token in (None, "wrong"):
            async with RESTClient(api.url, token) as client:
                await refused(client, Unauthenticated, "token")
                await refused(client, Unauthenticated, "token", vm="nope")
        async with RESTClient(api.url, secrets[Role.VIEWER]) as client:
            await refused(client, Forbidden, "operator")
        async with RESTClient(api.url, secrets[Role.OPERATOR]) as client:
            await refused(client, Forbidden, "belongs to local")
            async with client.console("theirs") as console:
                await console.send(b"x")
                assert await hear(console, 1) == b"x"
                await api.node.tokens.revoke("a-operator")
                with within(1), pytest.raises(Unauthenticated, match="revoked"):
                    await hear(console, 1)
        async with RESTClient(api.url, secrets[Role.ADMIN]) as client, client.console("theirs"):
            pass


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://localhost:1"}, 403),
        ({"Host": "evil.example"}, 421), ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "websocket"}, 403),
        ({"Authorization": "Bearer wrong"}, 401), ({"X-Forwarded-For": "203.0.113.7"}, 401),
        ({"Sec-WebSocket-Version": "12"}, 400), ({"Sec-WebSocket-Key": "x", "Upgrade": "h2c"}, 426),
        ({"Origin": "http://localhost"}, 101),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [PATH, SCREEN])
async def test_the_guard_stands_before_it(path: str, headers: dict[str, str], status: int, tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, _id):
        said = handshake(path, **{name.replace("-", "_"): value for name, value in headers.items()})
        heard = await trio.to_thread.run_sync(talk, api.address, said, 0.3)
        assert heard.startswith(b"HTTP/1.1 %d" % status), heard
        if status != 101:
            assert b'"code":' in heard
            assert not api.node.consoles._connections
            assert not api.node.screens._viewers
        assert (await api.client.get("/api/vm")).status_code == 200


async def test_a_screen_ends_with_its_token_and_with_its_session(tmp_path: Path) -> None:
    async with running(tmp_path, auth="token") as (api, _, _id):
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.ADMIN))
        headers = {"authorization": f"Bearer {made.secret}"}

        async def ended(end: Callable[[], Awaitable[object]], **fields: str) -> None:
            async with raw(api, SCREEN, **fields) as socket:
                assert (await socket.next(BytesMessage)).data == b"RFB 003.008\n"
                await end()
                with within(1):
                    assert (await socket.next(CloseConnection)).code == 4401
            with trio.fail_after(60):
                while api.node.screens._viewers:
                    await trio.sleep(0.01)

        link = (await api.client.post("/api/session", headers=headers)).json()["link"]
        cookie = (await api.client.get(link)).headers["set-cookie"].partition(";")[0]
        [session] = (await api.client.get("/api/sessions", headers=headers)).json()["sessions"]
        end = partial(api.client.delete, f"/api/sessions/{session['id']}", headers=headers)
        await ended(end, Cookie=cookie, Origin="http://localhost")
        assert (await api.client.get("/api/vm", headers={"cookie": cookie})).status_code == 401
        await ended(partial(api.node.tokens.revoke, "x"), Authorization=headers["authorization"])


async def test_a_page_of_ours_gets_one_by_its_cookie(tmp_path: Path) -> None:
    async with running(tmp_path, auth="token") as (api, _, _id):
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.ADMIN))
        headers = {"authorization": f"Bearer {made.secret}"}
        link = (await api.client.post("/api/session", headers=headers)).json()["link"]
        cookie = (await api.client.get(link)).headers["set-cookie"].partition(";")[0]
        async with raw(api, Cookie=cookie, Origin="http://localhost") as socket:
            await socket.send(TextMessage(data="é"))
            assert (await socket.next(BytesMessage)).data == "é".encode()


async def test_strange_frames_end_it_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path) as (api, _, _id):
        offers = {"Sec_WebSocket_Extensions": "permessage-deflate"}
        for said in (
            b"\x83\x80\x00\x00\x00\x00",  # an opcode that is none
            b"\x82\x01x",  # without a mask
            b"\xc2\x81\x00\x00\x00\x00x",  # a bit of an extension that was not agreed on
            b"\x82\xff" + b"\xff" * 8 + b"\x00" * 4,  # a length beyond all bounds
            b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + bytes(1 << 17),
            b"\x88\x83\x00\x00\x00\x00\x00\x00\xff",
            b"GET / HTTP/1.1\r\n\r\n",
        ):
            async with raw(api, **offers) as socket:
                with contextlib.suppress(trio.BrokenResourceError):
                    await socket.stream.send_all(said)
                    with trio.fail_after(20):
                        while await socket.stream.receive_some(65536):
                            pass
        await nobody_listens(api)
        assert (await api.client.get("/api/vm")).status_code == 200
    assert "by a bug" not in capsys.readouterr().err


async def test_bytes_before_the_handshake_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, hypervisor, id):
        hypervisor.hang(id)
        hypervisor.behaviour.timeout = 0.2
        heard = await trio.to_thread.run_sync(talk, api.address, handshake() + b"\x82\x81\x00\x00\x00\x00x", 0.5)
        assert heard.startswith(b"HTTP/1.1 400")
        assert b'"code":"invalid_request"' in heard
        await nobody_listens(api)


async def test_a_client_that_vanishes_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, _id):
        for last in (None, CloseConnection(code=1000), CloseConnection(code=1001)):
            async with raw(api) as socket:
                await socket.send(BytesMessage(data=b"x"))
                await socket.next(BytesMessage)
                if last is not None:
                    await socket.send(last)
                    assert (await socket.next(CloseConnection)).code == last.code
            await nobody_listens(api)
        with trio.fail_after(60):
            while "twinshare_http_connections 1.0" not in (await api.client.get("/metrics")).text:
                await trio.sleep(0.01)


async def test_a_client_that_answers_no_ping_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "HEARTBEAT", 0.05)
    monkeypatch.setattr(serve, "HEARTBEAT", 0.05)
    monkeypatch.setattr(relay, "SILENCE", 0.2)
    async with running(tmp_path) as (api, _, _id), raw(api) as quiet, raw(api) as polite:
        for _ in range(8):
            ping = await polite.next(Ping)
            await polite.send(Pong(payload=ping.payload))
        ended = await quiet.next(CloseConnection)
        assert (ended.code, ended.reason) == (4408, "request_timeout: the client answers no ping")
        await polite.send(BytesMessage(data=b"still here"))
        assert (await polite.next(BytesMessage)).data == b"still here"


async def test_a_slow_reader_is_let_go_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, hypervisor, id):

        async def flood(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            for _ in range(160):
                await stream.send_all(bytes(1 << 15))
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()

        hypervisor.serve_console(id, flood)
        async with RESTClient(api.url) as client, raw(api) as slow, client.console("one") as quick:
            await quick.send(b"go")
            assert len(await hear(quick, 160 << 15)) == 160 << 15
            assert len(api.node.consoles._connections[id].clients) == 1
            ended = await slow.next(CloseConnection)
            assert ended.code == 4503
            assert ended.reason.startswith("overloaded: this client")


async def test_the_end_of_the_node_is_reported(tmp_path: Path) -> None:
    opened = trio.Event()

    async def listen(url: str) -> None:
        async with RESTClient(url) as client, client.console("one") as console:
            await console.send(b"x")
            assert await hear(console, 1) == b"x"
            opened.set()
            with pytest.raises(Unavailable, match="stopping"):
                await console.receive()

    with within(10):
        async with trio.open_nursery() as nursery, running(tmp_path) as (api, _, _id):
            nursery.start_soon(listen, api.url)
            await opened.wait()


async def test_a_far_console(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _), open_api(near) as url, RESTClient(url) as client:
        async with client.console("far", "node-0") as one, client.console("far", far.peer_id) as two:
            await one.send(b"x")
            assert [await hear(one, 1), await hear(two, 1)] == [b"x", b"x"]
            await near.mesh.stop()
            with within(10), pytest.raises(PeerUnreachable, match="lost"):
                await two.receive()
        await refused(client, P2pStopped, "not running", vm="far", peer="node-0")


async def test_what_is_no_node_of_ours(tmp_path: Path) -> None:
    async with running(tmp_path) as (api, _, _id):

        async def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, text="hello")

        async with RESTClient(api.url, transport=httpx.MockTransport(answer)) as client:
            await refused(client, NodeUnreachable, "opens no websocket")
