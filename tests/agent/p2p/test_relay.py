"""Circuits on loopback: who gets a place, who gets through, what is bounded. Real routers: tests/nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import MALFORMED_MESSAGE, NO_RESERVATION, OK, HopMessage, StopMessage

from tests.stopwatch import within
from twinshare.agent.p2p.contract_hosts import ECHO, Guests, admit_all
from twinshare.agent.p2p.host import Admission, Direction, PathKind, Stream
from twinshare.agent.p2p.libp2p.handshake import NoiseIdentity, UpgradeFailed
from twinshare.agent.p2p.libp2p.host import LibP2pHost
from twinshare.agent.p2p.libp2p.multiaddr_bytes import peer_id_to_bytes
from twinshare.agent.p2p.libp2p.relay.circuit import HOP, STOP, StreamPipe, ask
from twinshare.agent.p2p.libp2p.relay.hop import HopLimits
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.libp2p.upgrade import Upgrader
from twinshare.agent.p2p.libp2p.varint import BadMessage, MessageReader
from twinshare.protocols.errors import PeerUnreachable, Unsupported

from .hosts import open_echo, open_hosts, talks, until

RELAY_ON = HostSettings(relay=True)


@asynccontextmanager
async def open_three(settings: HostSettings = RELAY_ON) -> AsyncIterator[tuple[LibP2pHost, LibP2pHost, LibP2pHost]]:
    """A relay, a host with a place at it, and one that only knows the relayed address."""
    async with open_hosts(3, settings=settings) as (relay, inside, outside):
        await inside.connect(relay.peer_id, relay.addresses)
        assert inside.relaying is not None
        assert await inside.relaying.reservations.reserve(relay.peer_id)
        yield relay, inside, outside


def relayed(host: LibP2pHost) -> list[str]:
    return [address for address in host.addresses if "p2p-circuit" in address]


async def test_a_host_is_reached_through_a_relay() -> None:
    async with open_three() as (relay, inside, outside):
        [address] = relayed(inside)
        assert address == f"{relay.addresses[0]}/p2p-circuit/p2p/{inside.peer_id}"
        made = await outside.connect(inside.peer_id, [address])
        assert (made.path, made.direction) == (PathKind.RELAYED, Direction.OUTBOUND)
        assert outside.path(inside.peer_id) is inside.path(outside.peer_id) is PathKind.RELAYED
        for size in (1, 70_000, 2_000_000):
            await talks(outside, inside.peer_id, bytes(i % 251 for i in range(1000)) * (1 + size // 1000))
            await talks(inside, outside.peer_id, bytes(size))
        assert await outside.ping(inside.peer_id) < 1
        assert relay.relaying is not None
        assert relay.relaying.hop.circuits == 1
        await outside.disconnect(inside.peer_id)
        await until(lambda: not inside.path(outside.peer_id))
        await until(lambda: relay.relaying is not None and relay.relaying.hop.circuits == 0)


async def test_a_direct_address_is_preferred() -> None:
    async with open_three() as (_, inside, outside):
        made = await outside.connect(inside.peer_id, [*relayed(inside), inside.addresses[0]])
        assert made.path is PathKind.DIRECT


async def test_the_relay_is_tried_when_the_direct_address_is_dead() -> None:
    async with open_three() as (_, inside, outside):
        with within(2):
            made = await outside.connect(inside.peer_id, ["/ip4/127.0.0.1/tcp/9", *relayed(inside)])
        assert made.path is PathKind.RELAYED


async def test_without_a_place_there_is_no_circuit() -> None:
    async with open_hosts(3, settings=RELAY_ON) as (relay, inside, outside):
        await inside.connect(relay.peer_id, relay.addresses)
        address = f"{relay.addresses[0]}/p2p-circuit/p2p/{inside.peer_id}"
        with pytest.raises(PeerUnreachable, match="NO_RESERVATION"):
            await outside.connect(inside.peer_id, [address])


async def test_the_end_of_the_relay_is_the_end_of_the_circuit() -> None:
    async with open_hosts(2, settings=RELAY_ON) as (inside, outside):
        async with open_echo(settings=RELAY_ON) as relay:
            await inside.connect(relay.peer_id, relay.addresses)
            assert inside.relaying is not None
            await inside.relaying.reservations.reserve(relay.peer_id)
            await outside.connect(inside.peer_id, relayed(inside))
            stream = await outside.open_stream(inside.peer_id, ECHO)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await until(lambda: not inside.connections and not outside.connections)


async def test_a_stranger_does_not_get_in_through_a_relay() -> None:
    gate = Guests()
    async with (
        open_hosts(2, settings=RELAY_ON) as (relay, stranger),
        open_echo(gate=gate, settings=RELAY_ON) as inside,
    ):
        gate.admitted[relay.peer_id] = Admission.MEMBER
        await inside.connect(relay.peer_id, relay.addresses)
        assert inside.relaying is not None
        await inside.relaying.reservations.reserve(relay.peer_id)
        with pytest.raises(PeerUnreachable):
            await stranger.connect(inside.peer_id, relayed(inside))
        assert not inside.path(stranger.peer_id)


async def test_the_relay_serves_members_only() -> None:
    gate = Guests()
    async with open_echo(gate=gate, settings=RELAY_ON) as relay, open_echo(settings=RELAY_ON) as guest:
        gate.admitted[guest.peer_id] = Admission.GUEST
        await guest.connect(relay.peer_id, relay.addresses)
        assert guest.relaying is not None
        assert not await guest.relaying.reservations.reserve(relay.peer_id)
        assert not relayed(guest)


async def test_a_relay_that_lies_about_the_source_is_found_out() -> None:
    """It claims that a member calls, and shakes hands as another whom the gate would admit, too."""
    async with open_three() as (relay, inside, outside):
        liar = NoiseIdentity.from_seed(bytes(32))
        for claimed, admitted in ((outside.peer_id, False), (liar.peer_id, True)):
            stream = await relay.open_stream(inside.peer_id, STOP)
            claim = StopMessage(type=StopMessage.CONNECT)
            claim.peer.id = peer_id_to_bytes(claimed)
            answer, held = await ask(stream, claim, StopMessage())
            assert answer.status == OK
            upgrader = Upgrader(liar, admit_all, RELAY_ON)
            pipe = StreamPipe(stream, held, 5.0)
            try:
                muxer = (await upgrader.upgrade(pipe, Direction.OUTBOUND, inside.peer_id)).muxer
            except UpgradeFailed:
                muxer = None
            assert (muxer is not None) is admitted, "the truth is what is proved"
            assert inside.path(outside.peer_id) is None
            await until(lambda: len(inside.connections) == 1 + admitted)  # noqa: B023 - it ends in this round
            assert inside.path(liar.peer_id) is (PathKind.RELAYED if admitted else None)
            stream.reset()
            await until(lambda: len(inside.connections) == 1)
        await talks(relay, inside.peer_id)


@pytest.mark.parametrize(
    "wire", [b"", b"\x03\xff\xff\xff", b"\x00", b"\x02\x08\x02", b"\x02\x08\x01", b"\xff\xff\xff\x7f"]
)
@pytest.mark.parametrize("protocol", [HOP, STOP])
async def test_nonsense_is_answered_or_dropped(wire: bytes, protocol: str) -> None:
    async with open_three() as (relay, inside, _):
        source, target = (inside, relay) if protocol == HOP else (relay, inside)
        stream = await source.open_stream(target.peer_id, protocol)
        await stream.send_all(wire)
        await stream.send_eof()
        answer = HopMessage() if protocol == HOP else StopMessage()
        with within(3):
            said = await MessageReader(stream).read(answer)
        if said is not None:
            assert said.status in (MALFORMED_MESSAGE, NO_RESERVATION, 202)
        await talks(source, target.peer_id)


async def test_circuits_are_bounded_in_number() -> None:
    async with open_three() as (relay, inside, outside):
        assert relay.relaying is not None
        relay.relaying.hop._limits = HopLimits(circuits_each=1)
        await outside.connect(inside.peer_id, relayed(inside))
        async with open_echo(settings=RELAY_ON) as another:
            with pytest.raises(PeerUnreachable, match="RESOURCE_LIMIT_EXCEEDED"):
                await another.connect(inside.peer_id, relayed(inside))


async def test_circuits_are_bounded_in_bytes_and_time() -> None:
    for limits in (HopLimits(data=200_000), HopLimits(duration=0.3)):
        async with open_three() as (relay, inside, outside):
            assert relay.relaying is not None
            relay.relaying.hop._limits = limits
            await outside.connect(inside.peer_id, relayed(inside))
            stream = await outside.open_stream(inside.peer_id, ECHO)
            with within(5), pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await pour(stream)
            await until(lambda: not inside.path(outside.peer_id))


async def pour(stream: Stream) -> None:
    while True:
        await stream.send_all(bytes(50_000))
        await stream.receive_some()


async def test_there_is_no_circuit_over_a_circuit() -> None:
    async with open_three() as (_, inside, outside):
        await outside.connect(inside.peer_id, relayed(inside))
        assert outside.relaying is not None
        assert not await outside.relaying.reservations.reserve(inside.peer_id)
        stream = await outside.open_stream(inside.peer_id, HOP)
        with pytest.raises((BadMessage, trio.BrokenResourceError)):
            await ask(stream, HopMessage(type=HopMessage.RESERVE), HopMessage())


async def test_relays_can_be_off() -> None:
    async with open_hosts(2) as (host, other):
        address = f"{other.addresses[0]}/p2p-circuit/p2p/{host.peer_id}"
        with pytest.raises(PeerUnreachable, match="relays are off"):
            await other.connect(host.peer_id, [address])
        await other.connect(host.peer_id, host.addresses)
        with pytest.raises(Unsupported):
            await other.open_stream(host.peer_id, HOP)
