"""The shell of a session: trio's contract of streams, cancellation anywhere, dead peers, readers that stop."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
from trio.testing import check_half_closeable_stream, check_two_way_stream

from twinshare.agent.p2p.libp2p.pacing import BulkRoom
from twinshare.agent.p2p.libp2p.yamux.frame import DATA, encode
from twinshare.agent.p2p.libp2p.yamux.session import SessionLimits, SessionOver, TooManyStreams
from twinshare.agent.p2p.libp2p.yamux.state import INITIAL_WINDOW
from twinshare.agent.p2p.libp2p.yamux.stream import YamuxStream

from .pairs import ConnectionPair, open_pair


async def clog(stream: YamuxStream) -> None:
    """Send until sending blocks."""
    while True:
        with trio.move_on_after(0.1) as waiting:
            await stream.send_all(bytes(INITIAL_WINDOW))
        if waiting.cancelled_caught:
            return


async def test_a_stream_keeps_trios_contract(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:

        async def clogged() -> tuple[YamuxStream, YamuxStream]:
            near, far = await pair.streams()
            await clog(near)
            await clog(far)
            return near, far

        await check_two_way_stream(pair.streams, clogged)
        await check_half_closeable_stream(pair.streams, clogged)
        assert pair.near.stream_count == pair.far.stream_count == 0


async def test_a_connection_knows_its_own_streams_and_its_end(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        near, far = await pair.streams()
        assert pair.near.carries(near)
        assert not pair.near.carries(far)
        assert not pair.near.carries(object())
        assert pair.near.usable
        pair.near.give_up()
        assert not pair.near.usable
        assert not pair.near.carries(near)
        assert pair.near.reason == "it was given up"
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x")


async def echo(stream: YamuxStream) -> None:
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(65536):
            await stream.send_all(data)
    await stream.aclose()


async def serve_echo(pair: ConnectionPair, nursery: trio.Nursery) -> None:
    async for stream in pair.accepted:
        nursery.start_soon(echo, stream)


async def exchange(pair: ConnectionPair, data: bytes) -> bytes:
    """Send `data` to the echo and read it back whole."""
    stream = pair.near.open_stream()
    got = bytearray()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(got) < len(data):
                got += await stream.receive_some(65536)
    except BaseException:
        stream.reset()
        raise
    await stream.aclose()
    return bytes(got)


async def test_random_cancellations_leave_the_connection_whole(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(7)
    done = cancelled = 0

    async def worker(pair: ConnectionPair) -> None:
        nonlocal done, cancelled
        for _ in range(40):
            data = rng.randbytes(rng.choice([1, 100, 5_000, 70_000, 400_000]))
            with trio.CancelScope() as scope:
                if rng.random() < 0.4:
                    # cancelled after a drawn number of scheduler rounds: any point of the exchange
                    for _ in range(rng.randrange(1, 6)):
                        await trio.lowlevel.checkpoint()
                    scope.deadline = trio.current_time()
                assert await exchange(pair, data) == data
                done += 1
            cancelled += scope.cancelled_caught

    async with open_pair() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, pair, nursery)
        async with trio.open_nursery() as workers:
            for _ in range(12):
                workers.start_soon(worker, pair)
        assert done > 100
        assert cancelled > 50
        assert await exchange(pair, b"still here") == b"still here"
        await trio.testing.wait_all_tasks_blocked()
        assert pair.near.stream_count == pair.far.stream_count == 0
        assert pair.near.reason is None
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_found_dead_within_the_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair(peer_timeout=2.0) as pair:
        stream, _ = await pair.streams()
        pair.far_channel.hold = trio.Event()  # it takes everything in and never answers
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError, match="silent for 2 s"):
            await stream.receive_some()
        assert 1.5 <= trio.current_time() - start <= 2.0
        await pair.near.closed.wait()
        with pytest.raises(SessionOver):
            pair.near.open_stream()


async def test_an_idle_connection_stays_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair(peer_timeout=2.0) as pair:
        await trio.sleep(300)
        assert pair.near.reason is None
        assert await pair.near.ping() >= 0


async def test_a_reader_that_stops_does_not_hold_the_others(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stuck, _ = await pair.streams()
        await clog(stuck)
        stream, far = await pair.streams()
        await stream.send_all(b"hello")
        assert await far.receive_some() == b"hello"


async def test_bulk_waits_for_the_line_and_what_is_urgent_does_not(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        near, far = await pair.streams()
        pair.near_channel.room = BulkRoom(0, pause=3600.0)
        await near.send_all(bytes(100_000))
        got = len(await far.receive_some(200_000))
        with trio.move_on_after(60) as waiting:
            while True:
                got += len(await far.receive_some(200_000))
        assert waiting.cancelled_caught
        assert got < 100_000
        assert await pair.near.ping() >= 0
        assert pair.near_channel.asked < 100, "the writer sleeps meanwhile"


async def test_a_reader_that_stops_may_take_an_hour(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:
        stream, far = await pair.streams()
        nursery.start_soon(stream.send_all, bytes(3 * INITIAL_WINDOW))
        await trio.sleep(3600)
        got = 0
        while got < 3 * INITIAL_WINDOW:
            got += len(await far.receive_some())


async def test_a_peer_that_breaks_the_protocol_learns_why_and_is_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        stream, far = await pair.streams()
        await pair.near_channel.stream.send_all(encode(DATA, 0, stream.id, INITIAL_WINDOW + 1))
        await pair.far.closed.wait()
        assert pair.far.reason is not None
        assert "past the window" in pair.far.reason
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()
        await pair.near.closed.wait()
        assert pair.near.reason == "the peer broke the protocol: the peer went away with reason 1"


async def test_closing_says_goodbye_and_breaks_what_is_open(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stream, far = await pair.streams()
        await pair.near.aclose()
        with pytest.raises(trio.BrokenResourceError, match="we closed it"):
            await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match="the peer closed it"):
            await far.receive_some()
        assert pair.near.stream_count == pair.far.stream_count == 0


async def test_closing_does_not_wait_for_a_peer_that_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.near_channel.hold = trio.Event()
        start = trio.current_time()
        await pair.near.aclose()
        await pair.near.closed.wait()
        assert trio.current_time() - start <= 1.0


async def test_streams_are_bounded_on_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair(limits=SessionLimits(streams_each_way=3)) as pair:
        streams = [(await pair.streams())[0] for _ in range(3)]
        with pytest.raises(TooManyStreams):
            pair.near.open_stream()
        pair.far.session.max_inbound = 2
        streams[0].reset()
        refused = pair.near.open_stream()
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await refused.receive_some()


async def test_bytes_that_came_with_the_agreement_are_read_first(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stream, far = await pair.streams()
        stream.agree("/x/1.0.0", b"ahead")
        await far.send_all(b" of the rest")
        await far.aclose()
        got = bytearray()
        while data := await stream.receive_some(3):
            got += data
        assert got == b"ahead of the rest"
        assert stream.protocol == "/x/1.0.0"


async def test_a_ping_takes_as_long_as_its_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:
        pair.far_channel.hold = trio.Event()

        async def let_go() -> None:
            await trio.sleep(0.5)
            assert pair.far_channel.hold is not None
            pair.far_channel.hold.set()

        nursery.start_soon(let_go)
        assert await pair.near.ping() >= 0.5


async def test_a_ping_ends_with_its_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:
        pair.far_channel.hold = trio.Event()

        async def ping() -> None:
            with pytest.raises(SessionOver):
                await pair.near.ping()

        nursery.start_soon(ping)
        await trio.testing.wait_all_tasks_blocked()
        pair.near.give_up()


async def test_a_stream_names_its_peer_and_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        near, _ = await pair.streams()
        assert near.peer_id == pair.near.peer_id
        assert repr(near) == f"<stream {near.id} (no protocol) with {near.peer_id}>"


async def test_a_connection_whose_stream_numbers_are_used_up_opens_no_more() -> None:
    async with open_pair() as pair:
        pair.near.session._next_id = 2**32 - 1
        assert pair.near.open_stream().id == 2**32 - 1
        with pytest.raises(SessionOver):
            pair.near.open_stream()
