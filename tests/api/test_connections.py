"""Connections come and go: none is left, none is dead, and no client, however slow or rude, holds anything for long."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.agent.probe import probe
from tests.api.served import Served, served
from tests.leaks import nothing_leaks
from tests.stopwatch import within
from twinshare.agent.node import Node
from twinshare.api.rest import requests
from twinshare.api.server import connection, serve
from twinshare.protocols.access import Role
from twinshare.protocols.errors import ImageExists
from twinshare.protocols.node import TokenRequest

HOST = b"Host: localhost\r\n"
GET = b"GET /api/health HTTP/1.1\r\n" + HOST


async def until(found: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition, with a deadline."""
    with trio.fail_after(seconds):
        while not found():
            await trio.sleep(0.01)


async def send_for_ever(stream: trio.SocketStream, data: bytes, pause: float) -> None:
    while True:
        await stream.send_all(data)
        await trio.sleep(pause)


def open_connections(api: Served) -> int:
    """Connections at the server's end, by the kernel's table."""
    port = f":{api.address[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] not in {"0A", "06"} for row in rows)


@pytest.mark.parametrize(
    "ask", [GET + b"Connection: close\r\n\r\n", b"GET /api/health HTTP/1.0\r\n" + HOST + b"\r\n"], ids=["close", "1.0"]
)
async def test_200_connections_leave_no_socket(ask: bytes, tmp_path: Path) -> None:
    async with served(tmp_path) as api:

        async def attempt() -> None:
            stream = await trio.open_tcp_stream(*api.address)
            await stream.send_all(ask)
            heard = b""
            async for part in stream:
                heard += part
            assert heard.startswith(b"HTTP/1.1 200"), heard
            await stream.aclose()

        for _ in range(4):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(attempt)
        await until(lambda: open_connections(api) == 0)


async def test_nothing_is_left_when_the_server_ends(tmp_path: Path) -> None:
    async with served(tmp_path / "warm") as api:
        await api.get("/api/vm")
    with nothing_leaks():
        async with served(tmp_path / "measured") as api, trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(api.get, "/api/vm")


EARLY = {
    "401": b"POST /api/vm HTTP/1.1\r\n" + HOST + b"Authorization: Bearer wrong\r\nContent-Type: application/json\r\n",
    "404": b"POST /nope HTTP/1.1\r\n" + HOST,
    "405": b"PUT /api/vm HTTP/1.1\r\n" + HOST,
    "415": b"POST /api/vm HTTP/1.1\r\n" + HOST + b"Content-Type: text/plain\r\n",
    "421": b"POST /api/vm HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/json\r\n",
    "413": b"POST /api/vm HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n",
}


@pytest.mark.parametrize("status", EARLY)
@pytest.mark.parametrize("size", [100, 3_000_000])
async def test_an_early_answer_arrives_and_the_connection_is_sound_or_closed(
    status: str, size: int, tmp_path: Path
) -> None:
    if status == "413" and size == 100:
        return
    async with served(tmp_path) as api:
        sent = EARLY[status] + b"Content-Length: %d\r\n\r\n" % size + b"x" * size + GET + b"\r\n"
        heard = await trio.to_thread.run_sync(api.raw, sent)
        assert heard.startswith(b"HTTP/1.1 %s" % status.encode()), heard[:300]
        if b"connection: close" not in heard:
            assert b"HTTP/1.1 200" in heard
        await until(lambda: open_connections(api) == 0)


async def test_who_is_refused_while_sending_may_finish_and_reads_the_answer(tmp_path: Path) -> None:
    """Closing at once would reset the connection, and the answer with it."""
    async with served(tmp_path) as api, await trio.open_tcp_stream(*api.address) as stream:
        await stream.send_all(EARLY["404"] + b"Content-Length: 3000000\r\n\r\n")
        for _ in range(30):
            await trio.sleep(0.02)
            await stream.send_all(bytes(100_000))
        heard = b""
        async for part in stream:
            heard += part
        assert heard.startswith(b"HTTP/1.1 404")


async def test_a_view_that_answers_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of the body waits than the view's queue holds, and still the connection ends."""

    async def refuse(*_: Any, **_options: Any) -> None:
        await trio.sleep(0.2)
        raise ImageExists("there is one already")

    async with served(tmp_path) as api:
        monkeypatch.setattr(Node, "import_image", refuse)
        head = b"POST /api/image/import?name=x HTTP/1.1\r\n" + HOST + b"Content-Type: application/octet-stream\r\n"
        sent = head + b"Content-Length: 3000000\r\n\r\n" + bytes(3_000_000)
        assert (await trio.to_thread.run_sync(api.raw, sent)).startswith(b"HTTP/1.1 409")
        await until(lambda: open_connections(api) == 0)


async def test_an_endless_early_body_is_cut_off(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stream = await trio.open_tcp_stream(*api.address)
        await stream.send_all(EARLY["404"] + b"Transfer-Encoding: chunked\r\n\r\n")
        with within(10), pytest.raises(trio.BrokenResourceError):
            await send_for_ever(stream, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 0)
        await stream.aclose()


@pytest.mark.parametrize("data", [b"", b"GET /a", GET, GET + b"\r\n"], ids=["silent", "line", "head", "request"])
async def test_an_idle_connection_is_closed(data: bytes, tmp_path: Path) -> None:
    async with served(tmp_path, idle_timeout=0.3) as api:
        stream = await trio.open_tcp_stream(*api.address)
        await stream.send_all(data)
        with trio.fail_after(20):
            while await stream.receive_some():
                pass
        await stream.aclose()
        await until(lambda: open_connections(api) == 0)


async def test_a_head_that_drips_is_closed_all_the_same(tmp_path: Path) -> None:
    async with served(tmp_path, idle_timeout=0.4) as api:
        stream = await trio.open_tcp_stream(*api.address)
        await stream.send_all(GET)
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await send_for_ever(stream, b"x", 0.02)
        await stream.aclose()


async def test_the_largest_body_is_configured(tmp_path: Path) -> None:
    async with served(tmp_path, max_body=2048) as api:
        for content, status in ((b" " * 2047 + b"x", 400), (b" " * 2049, 413)):
            answer = await api.client.post("/api/vm", content=content, headers={"content-type": "application/json"})
            assert answer.status_code == status


async def test_a_body_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_TIME", 0.2)
    async with served(tmp_path) as api:
        sent = b"POST /api/vm HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        heard = await trio.to_thread.run_sync(api.raw, sent)
        assert heard.startswith(b"HTTP/1.1 408"), heard
        assert b'"code":"request_timeout"' in heard


async def test_an_upload_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "UPLOAD_IDLE", 0.2)
    async with served(tmp_path) as api:
        sent = (
            b"POST /api/image/import?name=x HTTP/1.1\r\n" + HOST
            + b"Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\nabc"
        )  # fmt: skip
        heard = await trio.to_thread.run_sync(api.raw, sent)
        assert heard.startswith(b"HTTP/1.1 408"), heard
        assert [image["name"] for image in (await api.get("/api/image"))["images"]] == ["disk"]


async def test_an_upload_that_is_cut_off_leaves_no_image(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stream = await trio.open_tcp_stream(*api.address)
        await stream.send_all(
            b"POST /api/image/import?name=x HTTP/1.1\r\n" + HOST
            + b"Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000)
        )  # fmt: skip
        await stream.aclose()
        await until(lambda: open_connections(api) == 0)
        assert [image["name"] for image in (await api.get("/api/image"))["images"]] == ["disk"]


async def test_a_slow_reader_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WRITE_TIME", 0.3)
    async with served(tmp_path) as api:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(api.address)
            sock.sendall(b"GET /api/events HTTP/1.1\r\n" + HOST + b"\r\n")
            await until(lambda: bool(api.node.events._listeners))
            for number in range(600):
                api.node.events.publish(probe("test.big", number=number, text="x" * 20_000))
                if number % 20 == 0:
                    await trio.sleep(0.01)
            await until(lambda: not api.node.events._listeners, 10)
            await until(lambda: open_connections(api) == 0)


async def test_too_many_connections(tmp_path: Path) -> None:
    async with served(tmp_path, max_connections=4) as api:
        held = [await trio.open_tcp_stream(*api.address) for _ in range(3)]
        for stream in held:
            await stream.send_all(GET + b"\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
        heard = await trio.to_thread.run_sync(api.raw, GET + b"\r\n")
        assert heard.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in heard
        assert b'"code":"overloaded"' in heard
        for stream in held:
            await stream.aclose()
        await until(lambda: open_connections(api) == 0)
        assert (await trio.to_thread.run_sync(api.raw, GET + b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_strangers_keep_nobody_out(tmp_path: Path) -> None:
    """Programs of other users held all places with half a request; who shows a token is no stranger any more."""
    async with served(tmp_path, auth="token", max_connections=8) as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        admitted = GET + f"Authorization: Bearer {made.secret}\r\n\r\n".encode()
        owners = []
        for _ in range(4):
            owners.append(await trio.open_tcp_stream(*api.address))
            await owners[-1].send_all(admitted)
            assert (await owners[-1].receive_some()).startswith(b"HTTP/1.1 200")
        strangers = [await trio.open_tcp_stream(*api.address) for _ in range(2)]
        for stream in strangers:
            await stream.send_all(GET[:10])
        await until(lambda: open_connections(api) == 6)
        assert (await trio.to_thread.run_sync(api.raw, admitted)).startswith(b"HTTP/1.1 503")
        await strangers[0].aclose()
        await until(lambda: open_connections(api) == 5)
        assert (await trio.to_thread.run_sync(api.raw, admitted)).startswith(b"HTTP/1.1 200")
        for stream in [*owners, strangers[1]]:
            await stream.aclose()


@asynccontextmanager
async def stuck(api: Served, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    """Reads of VMs wait for ever; the first event tells that one has begun, the second that it was cancelled."""
    begun, cancelled = trio.Event(), trio.Event()

    async def call(*_: Any) -> Awaitable[Any]:
        begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.set()
            raise

    monkeypatch.setattr(Node, "call", call)
    yield begun, cancelled


async def test_a_client_that_hangs_up_cancels_its_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as api, stuck(api, monkeypatch) as (begun, cancelled):
        stream = await trio.open_tcp_stream(*api.address)
        await stream.send_all(b"GET /api/vm HTTP/1.1\r\n" + HOST + b"\r\n")
        await begun.wait()
        await stream.aclose()
        with within(2):
            await cancelled.wait()
        await until(lambda: open_connections(api) == 0)


async def test_stopping_tells_who_waits_and_cuts_who_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Short and long beside what a busy machine needs: it must end because nothing is open any more.
    times = {"GRACE": 0.3, "ANSWER_TIME": 120.0}
    for name, seconds in times.items():
        monkeypatch.setattr(serve, name, seconds)
    answers: list[httpx.Response] = []
    lines: list[str] = []
    async with trio.open_nursery() as nursery:
        async with served(tmp_path) as api:
            listening = trio.Event()

            async def wait() -> None:
                async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
                    answers.append(await client.get("/api/vm"))

            async def listen() -> None:
                async with (
                    httpx.AsyncClient(base_url=api.url, trust_env=False) as client,
                    client.stream("GET", "/api/events") as stream,
                ):
                    listening.set()
                    with pytest.raises(httpx.RemoteProtocolError):
                        lines.extend([line async for line in stream.aiter_lines()])

            await api.get("/api/vm")
            async with stuck(api, monkeypatch) as (begun, _):
                nursery.start_soon(wait)
                nursery.start_soon(listen)
                await begun.wait()
                await listening.wait()
                idle = await trio.open_tcp_stream(*api.address)
                started = trio.current_time()
                monkeypatch.undo()
                for name, seconds in times.items():
                    monkeypatch.setattr(serve, name, seconds)
        assert trio.current_time() - started < 60
        await idle.aclose()
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "unavailable")


async def test_a_mutation_outlives_its_client(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        stream = await trio.open_tcp_stream(*api.address)
        body = b'{"name":"one","image":"disk","memory":64,"disk_size":1,"cpu_cores":1}'
        await stream.send_all(
            b"POST /api/vm HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\nIdempotency-Key: k\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(body) + body
        )  # fmt: skip
        async with api.node.events.subscribe(after=api.node.events.last_id) as events:
            with trio.fail_after(60):
                while (await events.receive()).type != "vm.state":
                    pass
                await stream.aclose()
                while (await events.receive()).type != "op.done":
                    pass
        assert [vm["name"] for vm in (await api.get("/api/vm"))["vms"]] == ["one"]
