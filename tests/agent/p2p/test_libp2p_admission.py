"""Whom a host lets in: strangers, guests, members, and those whose role is lost."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from twinshare.agent.p2p.contract_hosts import ECHO, Guests
from twinshare.agent.p2p.host import Admission, Direction
from twinshare.agent.p2p.libp2p.multistream import MULTISTREAM, encode
from twinshare.agent.p2p.libp2p.pipe import PipeBroken
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.libp2p.upgrade import YAMUX
from twinshare.protocols.errors import PeerUnreachable, Unsupported

from .hosts import open_echo, open_hosts, raw_channel, talks, until


async def test_a_stranger_is_cut_off_before_there_is_a_muxer() -> None:
    async with open_echo(gate=Guests()) as host, raw_channel(host) as channel:
        said: bytes | bytearray = b""
        with suppress(PipeBroken):
            await channel.send(encode(MULTISTREAM) + encode(YAMUX))
            said = await channel.receive()
        assert said == b""
        assert not host.connections


async def test_guests_are_bounded_in_number() -> None:
    gate = Guests()
    async with open_echo(gate=gate, settings=HostSettings(guests=2)) as host, open_hosts(3) as peers:
        for peer in peers:
            gate.admitted[peer.peer_id] = Admission.GUEST
        for peer in peers[:2]:
            await peer.connect(host.peer_id, host.addresses)
        await until(lambda: len(host.connections) == 2)
        await peers[2].connect(host.peer_id, host.addresses)
        await until(lambda: not peers[0].connections)  # the oldest gives way
        await until(lambda: {each.peer_id for each in host.connections} == {peer.peer_id for peer in peers[1:]})


async def test_guests_are_bounded_in_time_but_not_one_that_has_become_a_member() -> None:
    admitted_at: dict[str, float] = {}

    def gate(peer_id: str, _direction: Direction) -> Admission:
        is_guest = trio.current_time() - admitted_at.setdefault(peer_id, trio.current_time()) < 0.1
        return Admission.GUEST if is_guest or peer_id != member.peer_id else Admission.MEMBER

    async with open_hosts(2) as (member, guest), open_echo(gate=gate, settings=HostSettings(guest_time=0.3)) as host:
        await member.connect(host.peer_id, host.addresses)
        await guest.connect(host.peer_id, host.addresses)
        await until(lambda: not guest.connections)
        await until(lambda: [each.peer_id for each in host.connections] == [member.peer_id])


async def test_a_role_that_is_lost_is_lost_at_the_next_stream() -> None:
    gate = Guests()
    async with open_echo(gate=gate) as host, open_echo() as peer:
        gate.admitted[peer.peer_id] = Admission.MEMBER
        await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)
        gate.admitted[peer.peer_id] = Admission.REFUSED
        with pytest.raises((Unsupported, PeerUnreachable)):
            await peer.open_stream(host.peer_id, ECHO)
