"""The part of the contract of the port `Host` that is about streams."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from trio.testing import check_half_closeable_stream

from ...protocols.errors import Unsupported
from .contract_hosts import (
    BUG,
    ECHO,
    SINK,
    TIMEOUT,
    Check,
    OpenHost,
    check_broken,
    check_echo,
    connected,
    fails,
    fill,
)
from .host import PeerId, Stream


async def check_streams_keep_trios_contract(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        sent, received = trio.open_memory_channel[Stream](1)

        async def hand_over(stream: Stream) -> None:
            await sent.send(stream)
            await trio.sleep_forever()

        far.serve(SINK, hand_over)

        async def pair() -> tuple[Stream, Stream]:
            return await near.open_stream(far.peer_id, SINK), await received.receive()

        async def filled() -> tuple[Stream, Stream]:
            ends = await pair()
            for end in ends:
                await fill(end)
            return ends

        await check_half_closeable_stream(pair, filled)


async def check_a_stream_knows_its_ends(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        sent, received = trio.open_memory_channel[tuple[PeerId, str]](1)

        async def note(stream: Stream) -> None:
            await sent.send((stream.peer_id, stream.protocol))

        far.serve(SINK, note)
        stream = await near.open_stream(far.peer_id, SINK)
        assert (stream.peer_id, stream.protocol) == (far.peer_id, SINK)
        assert await received.receive() == (near.peer_id, SINK)
        assert await stream.receive_some() == b"", "the stream is closed when its handler returns"
        await fails(Unsupported, near.open_stream(far.peer_id, "/contract/nobody/1.0.0"))
        far.serve(ECHO, note)
        await near.open_stream(far.peer_id, ECHO)
        assert await received.receive() == (near.peer_id, ECHO), "the last handler that is served counts"


async def check_a_reset_breaks_the_other_end(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        was_reset = trio.Event()

        async def read_until_reset(stream: Stream) -> None:
            try:
                await stream.receive_some()
            except trio.BrokenResourceError:
                was_reset.set()

        far.serve(SINK, read_until_reset)
        stream = await near.open_stream(far.peer_id, SINK)
        stream.reset()
        stream.reset()
        with trio.fail_after(TIMEOUT):
            await was_reset.wait()
        await check_echo(near, far.peer_id)


async def check_a_handler_that_is_cancelled_resets_its_stream(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):

        async def give_up(stream: Stream) -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive_some()
            stream.reset()

        far.serve(BUG, give_up)
        await check_broken(await near.open_stream(far.peer_id, BUG))
        await check_echo(near, far.peer_id)


async def check_bulk_goes_both_ways_at_once(open_host: OpenHost) -> None:
    size, step = 6_000_000, 100_001
    async with connected(open_host) as (near, far):
        stream = await near.open_stream(far.peer_id, ECHO)
        sent = bytes(i % 251 for i in range(step)) * (size // step)
        got = bytearray()

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive_some():
                got += data
        assert got == sent


async def check_cancelled_calls_leave_nothing(open_host: OpenHost) -> None:
    """More streams are cancelled while they open than a host could keep."""
    async with connected(open_host) as (near, far):
        await check_echo(near, far.peer_id)
        for rounds in range(400):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(near.open_stream, far.peer_id, ECHO)
                    for _ in range(rounds % 7):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await check_echo(near, far.peer_id)
        assert len(near.connections) == 1


STREAM_CHECKS: Sequence[Check] = (
    check_streams_keep_trios_contract,
    check_a_stream_knows_its_ends,
    check_a_reset_breaks_the_other_end,
    check_a_handler_that_is_cancelled_resets_its_stream,
    check_bulk_goes_both_ways_at_once,
    check_cancelled_calls_leave_nothing,
)
