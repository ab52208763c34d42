"""Relays: bytes both ways, half-closes kept, ports given back, dead ends survived."""

from functools import partial

import pytest
import trio

from twinshare.agent.relays import open_relays
from twinshare.protocols.errors import PortTaken


async def echo_until_eof(stream: trio.SocketStream) -> None:
    """Answers only when the asker has ended its half: shows that the half-close travels."""
    async with stream:
        said = b""
        async for data in stream:
            said += data
        await stream.send_all(b"heard " + said)


async def test_bytes_travel_both_ways_and_a_half_close_is_kept() -> None:
    async with trio.open_nursery() as nursery, open_relays() as relays:
        listeners = await nursery.start(trio.serve_tcp, echo_until_eof, 0)
        far = listeners[0].socket.getsockname()[1]
        port = await relays.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", far))
        assert await relays.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", far)) == port
        with trio.fail_after(60):
            for _ in range(3):
                async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                    await near.send_all(b"x" * 100_000)
                    await near.send_eof()
                    answer = b"".join([data async for data in near])
                assert answer == b"heard " + b"x" * 100_000
        relays.close(("a",))
        with trio.fail_after(60):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                except OSError:
                    break
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_far_end_that_refuses_ends_the_connection_not_the_relay() -> None:
    async def refuse() -> trio.SocketStream:
        raise ConnectionRefusedError("nobody")

    async with open_relays() as relays:
        port = await relays.open(("a",), "127.0.0.1", 0, refuse)
        with trio.fail_after(60):
            for _ in range(3):
                async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                    assert await near.receive_some() == b""


async def test_a_stranger_is_let_go_unheard() -> None:
    async def dial() -> trio.SocketStream:
        raise AssertionError("must not be dialled")

    async def nobody(_: trio.SocketStream) -> bool:
        return False

    async with open_relays() as relays:
        port = await relays.open(("a",), "127.0.0.1", 0, dial, admits=nobody)
        with trio.fail_after(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as near:
                assert await near.receive_some() == b""


async def test_a_taken_port_is_named() -> None:
    async with open_relays() as relays:
        port = await relays.open(("a",), "127.0.0.1", 0, partial(trio.open_tcp_stream, "127.0.0.1", 1))
        with pytest.raises(PortTaken, match=str(port)):
            await relays.open(("b",), "127.0.0.1", port, partial(trio.open_tcp_stream, "127.0.0.1", 1))
