"""The bounds of a relay: connections at once, half-open ones, time of a dial, silence; and one listener per key."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import memory_stream_pair

from tests.stopwatch import within
from twinshare.agent import relays
from twinshare.agent.relays import open_relays
from twinshare.agent.streams import CHUNK, HALF_CLOSED_TIMEOUT, IDLE_TIMEOUT, SMALLEST, carry
from twinshare.protocols.errors import PortTaken


async def never() -> trio.SocketStream:
    await trio.sleep_forever()
    raise AssertionError


async def test_nothing_is_open_under_an_unknown_key() -> None:
    async with open_relays() as opened:
        assert opened.port(("a",)) is None
        assert opened.keys("a") == []
        opened.close(("a",))


async def test_a_key_that_is_opened_twice_at_once_is_one_port() -> None:
    ports: list[int] = []

    async with open_relays() as opened:

        async def once() -> None:
            ports.append(await opened.open(("a", "b"), "127.0.0.1", 0, never))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(once)
        assert len(ports) == 3
        assert len(set(ports)) == 1
        assert opened.keys("a") == [("a", "b")]
        assert opened.keys("b") == []


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relays.MAX_CONNECTIONS == 256
    monkeypatch.setattr(relays, "MAX_CONNECTIONS", 2)
    async with trio.open_nursery() as nursery, open_relays() as opened:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), echo, 0)
        far = listener.socket.getsockname()[1]
        port = await opened.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", far))

        async def answered() -> trio.SocketStream | None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            try:
                await stream.send_all(b"x")
                if await stream.receive_some() == b"x":
                    return stream
            except trio.BrokenResourceError:
                pass
            await stream.aclose()
            return None

        with trio.fail_after(20):
            first, second = await answered(), await answered()
            assert first is not None
            assert second is not None
            assert await answered() is None
            await first.aclose()
            while (third := await answered()) is None:
                await trio.lowlevel.checkpoint()
            await third.aclose()
            await second.aclose()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_reset_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MAX_CONNECTIONS", 1)
    async with trio.open_nursery() as nursery, open_relays() as opened:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), greet_for_ever, 0)
        far = listener.socket.getsockname()[1]
        port = await opened.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", far))
        with trio.fail_after(60):
            for _ in range(3):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                while not await heard(stream):  # the one before is not gone yet
                    await stream.aclose()
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await stream.aclose()
        nursery.cancel_scope.cancel()


async def heard(stream: trio.SocketStream) -> bytes:
    with suppress(trio.BrokenResourceError):
        return await stream.receive_some()
    return b""


async def greet_for_ever(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)


async def sink(stream: trio.SocketStream) -> None:
    """Greets, reads all, and never closes."""
    async with stream:
        await stream.send_all(b"x")
        async for _ in stream:
            pass
        await trio.sleep_forever()


async def greeted(port: int) -> trio.SocketStream | None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    if await stream.receive_some() == b"x":
        return stream
    await stream.aclose()
    return None


async def test_the_longest_half_closed_connection_gives_way_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MAX_CONNECTIONS", 3)
    async with trio.open_nursery() as nursery, open_relays() as opened:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), sink, 0)
        far = listener.socket.getsockname()[1]
        port = await opened.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", far))
        with trio.fail_after(20):
            whole, first, second = await greeted(port), await greeted(port), await greeted(port)
            assert whole is not None
            assert first is not None
            assert second is not None
            assert await greeted(port) is None
            await first.send_eof()
            while (third := await greeted(port)) is None:
                await trio.lowlevel.checkpoint()
            assert await first.receive_some() == b""
            await first.aclose()
            await second.aclose()  # its client is gone altogether, its guest never closes
            while (fourth := await greeted(port)) is None:
                await trio.lowlevel.checkpoint()
            assert await greeted(port) is None
            for stream in (whole, third, fourth):
                with trio.move_on_after(0.05) as waited:
                    await stream.receive_some()
                assert waited.cancelled_caught
                await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_dials_that_nobody_answers_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "MAX_CONNECTIONS", 2)
    async with trio.open_nursery() as nursery, open_relays() as opened:
        [listener] = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), sink, 0)
        dials = 0

        async def dial() -> trio.SocketStream:
            nonlocal dials
            dials += 1
            if dials <= 2:
                return await never()
            return await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])

        port = await opened.open(("a",), "127.0.0.1", 0, dial)
        with within(10):
            waiting = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
            while dials < 2:
                await trio.lowlevel.checkpoint()
            made = await greeted(port)
            assert made is not None
            assert await waiting[0].receive_some() == b""
            for stream in (*waiting, made):
                await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_client_that_vanished_is_probed() -> None:
    async with trio.open_nursery() as nursery, open_relays() as opened:
        probed: list[int] = []

        async def admits(near: trio.SocketStream) -> bool:
            nears.append(near)
            return True

        async def dial() -> trio.SocketStream:
            [near] = nears
            probed.append(near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            probed.append(near.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))
            raise ConnectionRefusedError

        nears: list[trio.SocketStream] = []
        port = await opened.open(("a",), "127.0.0.1", 0, dial, admits)
        with within(10):
            async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                assert await near.receive_some() == b""
        assert probed == [1, 60]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_half_closed_connection_ends_sooner_and_bytes_put_that_off(
    backwards: bool, autojump_clock: trio.testing.MockClock
) -> None:
    (client, near), (far, server) = memory_stream_pair(), memory_stream_pair()
    ender, other = (server, client) if backwards else (client, server)
    async with trio.open_nursery() as nursery:

        async def carried() -> None:
            assert not await carry(near, far)
            nursery.cancel_scope.cancel()

        nursery.start_soon(carried)
        await ender.send_eof()
        await trio.sleep(HALF_CLOSED_TIMEOUT - 1)
        await other.send_all(b"x")
        assert await ender.receive_some() == b"x"
        await trio.sleep(HALF_CLOSED_TIMEOUT - 1)
        assert not nursery.cancel_scope.cancel_called
        await trio.sleep(2)
    assert HALF_CLOSED_TIMEOUT < IDLE_TIMEOUT / 10
    assert trio.current_time() == pytest.approx(2 * HALF_CLOSED_TIMEOUT - 1, abs=0.5)


async def test_a_dial_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relays.DIAL_TIMEOUT == 20.0
    monkeypatch.setattr(relays, "DIAL_TIMEOUT", 0.05)
    async with open_relays() as opened:
        port = await opened.open(("a",), "127.0.0.1", 0, never)
        with trio.fail_after(20):
            async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                assert await near.receive_some() == b""


@pytest.mark.parametrize("backwards", [False, True])
async def test_silence_ends_a_connection_and_bytes_either_way_put_that_off(
    backwards: bool, autojump_clock: trio.testing.MockClock
) -> None:
    (client, near), (far, server) = memory_stream_pair(), memory_stream_pair()
    sender, receiver = (server, client) if backwards else (client, server)
    async with trio.open_nursery() as nursery:

        async def carried() -> None:
            await carry(near, far)
            nursery.cancel_scope.cancel()

        nursery.start_soon(carried)
        await trio.sleep(IDLE_TIMEOUT - 1)
        await sender.send_all(b"x")
        assert await receiver.receive_some() == b"x"
        await trio.sleep(IDLE_TIMEOUT - 1)
        assert not nursery.cancel_scope.cancel_called
        await trio.sleep(2)
    assert trio.current_time() == pytest.approx(2 * IDLE_TIMEOUT - 1, abs=0.5)


async def test_either_end_that_breaks_ends_both(autojump_clock: trio.testing.MockClock) -> None:
    (client, near), (far, server) = memory_stream_pair(), memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, near, far)
            await server.aclose()
            await client.send_all(b"x")


async def test_who_is_not_admitted_reaches_nothing() -> None:
    dialled: list[bool] = []
    verdicts: list[bool] = []

    async def dial() -> trio.SocketStream:
        dialled.append(verdicts[-1])
        raise ConnectionRefusedError

    async def admits(_: trio.SocketStream) -> bool:
        verdicts.append(len(verdicts) == 1)
        return verdicts[-1]

    async with open_relays() as opened:
        port = await opened.open(("a",), "127.0.0.1", 0, dial, admits)
        with trio.fail_after(20):
            for _ in range(3):
                async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                    assert await near.receive_some() == b""
    assert (verdicts, dialled) == ([False, True, False], [True])


async def test_why_a_port_cannot_be_had() -> None:
    async with open_relays() as opened:
        port = await opened.open(("a",), "127.0.0.1", 0, never)
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken by another program"):
            await opened.open(("b",), "127.0.0.1", port, never)
        with pytest.raises(PortTaken, match="cannot be opened: Cannot assign"):
            await opened.open(("b",), "203.0.113.7", 0, never)


async def test_a_direction_ends_after_its_limit(autojump_clock: trio.testing.MockClock) -> None:
    (client, near), (far, server) = memory_stream_pair(), memory_stream_pair()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(carry, near, far, limit=3))
            for _ in range(2):
                await client.send_all(b"xx")
                assert await server.receive_some() == b"xx"
            assert await server.receive_some() == b""
            await client.send_all(b"xx")
            await server.send_all(b"yy")
            assert await client.receive_some() == b"yy"
            await server.aclose()


class Plenty(trio.abc.HalfCloseableStream):
    """Much, then little, then the end; notes how much is asked for at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(max_bytes or 0)
        return bytes(self.asked[-1] if len(self.asked) < 10 else 10 if len(self.asked) < 30 else 0)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_more_is_read_at_once_while_much_comes() -> None:
    near, far = Plenty(), Plenty()
    await carry(near, far)
    assert near.asked[:6] == [SMALLEST, 2 * SMALLEST, 4 * SMALLEST, 8 * SMALLEST, CHUNK, CHUNK]
    assert near.asked[-1] == SMALLEST
