"""The network in memory behaves like one: trio's own stream check, then silence, loss and partitions."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
import trio.testing

from twinshare.agent.p2p.host import Admission, Direction, Host, PeerEvent, PeerId, Stream
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.protocols.errors import PeerUnreachable, Unsupported

ECHO = "/echo/1.0.0"


def admit_all(_peer: PeerId, _direction: Direction) -> Admission:
    return Admission.MEMBER


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def two_hosts(network: MemoryNetwork, peer_timeout: float = 15.0) -> AsyncIterator[tuple[Host, Host]]:
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(open_memory_host(network, name, admit_all, peer_timeout=peer_timeout))
            for name in ("a", "b")
        ]
        b.serve(ECHO, echo)
        await a.connect("b", b.addresses)
        yield a, b


async def test_streams_pass_trios_own_check() -> None:
    network = MemoryNetwork()
    async with two_hosts(network) as (a, b):
        send, receive = trio.open_memory_channel[tuple[Stream, trio.Event]](0)

        async def hand_over(stream: Stream) -> None:
            done = trio.Event()
            await send.send((stream, done))
            await trio.sleep_forever()

        b.serve("/check", hand_over)

        async def make() -> tuple[Stream, Stream]:
            ours = await a.open_stream("b", "/check")
            theirs, _ = await receive.receive()
            return ours, theirs

        async def make_clogged() -> tuple[Stream, Stream]:
            ours, theirs = await make()
            for end in (ours, theirs):
                with trio.move_on_after(0.02):
                    await end.send_all(bytes(1 << 20))
            return ours, theirs

        await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_bytes_take_their_time(autojump_clock: trio.testing.MockClock) -> None:
    async with two_hosts(MemoryNetwork(delay=lambda _a, _b: 0.25)) as (a, _):
        stream = await a.open_stream("b", ECHO)
        started = trio.current_time()
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert trio.current_time() - started == pytest.approx(0.5)
        assert await a.ping("b") == pytest.approx(0.5)


async def test_a_silent_link_holds_bytes_back_and_loses_none(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with two_hosts(network) as (a, _):
        stream = await a.open_stream("b", ECHO)
        network.cut("a", "b")
        await stream.send_all(b"hello")
        with trio.move_on_after(10) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught
        network.heal()
        assert await stream.receive_some() == b"hello"


async def test_a_silent_peer_is_given_up_in_time_on_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with two_hosts(network, peer_timeout=2) as (a, b):
        stream = await a.open_stream("b", ECHO)
        network.freeze("b")
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert trio.current_time() - started == pytest.approx(2)
        await trio.testing.wait_all_tasks_blocked()
        assert not a.connections
        assert not b.connections
        with pytest.raises(PeerUnreachable):
            await a.connect("b", b.addresses)
        network.heal("b")
        await a.connect("b", b.addresses)


async def test_a_partition_separates_its_groups_alone(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with two_hosts(network) as (a, b), open_memory_host(network, "c", admit_all) as c:
        await c.connect("b", b.addresses)
        network.partition(["a"], ["b", "c"])
        assert await c.ping("b") == pytest.approx(0)
        with pytest.raises(PeerUnreachable):
            await a.ping("b")


async def test_both_sides_notice_a_dropped_connection_and_can_dial_again() -> None:
    network = MemoryNetwork()
    async with two_hosts(network) as (a, b):
        stream = await a.open_stream("b", ECHO)
        network.drop("a", "b")
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")
        assert not a.connections
        assert not b.connections
        await a.connect("b", b.addresses)
        seen = [a.events.receive_nowait() for _ in range(3)]
        assert [event.connected for event in seen] == [True, False, True]


async def test_a_host_that_dies_breaks_its_connections_and_is_found_at_its_new_address() -> None:
    network = MemoryNetwork()
    async with open_memory_host(network, "a", admit_all) as a:
        async with open_memory_host(network, "b", admit_all) as b:
            old = list(b.addresses)
            await a.connect("b", old)
        assert not a.connections
        async with open_memory_host(network, "b", admit_all) as b:
            with pytest.raises(PeerUnreachable):
                await a.connect("b", old)
            connection = await a.connect("b", [*old, *b.addresses, "no address at all"])
            assert f"{connection.address}/p2p/b" == b.addresses[0]


async def test_the_gate_refuses_lets_guests_to_their_protocols_and_holds_at_once() -> None:
    network = MemoryNetwork()
    admission = Admission.REFUSED
    async with (
        open_memory_host(network, "a", admit_all) as a,
        open_memory_host(network, "b", lambda _peer, _direction: admission) as b,
    ):
        b.serve(ECHO, echo)
        b.serve("/join", echo, guests=True)
        with pytest.raises(PeerUnreachable):
            await a.connect("b", b.addresses)
        admission = Admission.GUEST
        await a.connect("b", b.addresses)
        with pytest.raises(Unsupported):
            await a.open_stream("b", ECHO)
        await a.open_stream("b", "/join")
        admission = Admission.MEMBER
        await a.open_stream("b", ECHO)
        admission = Admission.REFUSED
        with pytest.raises(Unsupported):
            await a.open_stream("b", "/join")


@pytest.mark.expects_errors
async def test_a_handler_that_fails_resets_its_stream_and_nothing_else() -> None:
    async def fail(stream: Stream) -> None:
        raise RuntimeError("a bug")

    async with two_hosts(MemoryNetwork()) as (a, b):
        b.serve("/fail", fail)
        stream = await a.open_stream("b", "/fail")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert await a.ping("b") < 1


async def test_events_that_nobody_reads_give_way_to_the_newest() -> None:
    network = MemoryNetwork()
    async with two_hosts(network) as (a, b):
        for _ in range(600):
            network.drop("a", "b")
            await a.connect("b", b.addresses)
        assert a.events.statistics().current_buffer_used == 1024
        last = None
        while a.events.statistics().current_buffer_used:
            last = a.events.receive_nowait()
        assert isinstance(last, PeerEvent)
        assert last.connected
