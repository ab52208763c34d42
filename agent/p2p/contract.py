"""What every `Host` must do: the in-memory adapter and the one over libp2p both pass this check.

`await check_host(open_host)` raises AssertionError where a host breaks the port's promises.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from ...protocols.errors import PeerUnreachable, TwinshareError, Unsupported
from .contract_hosts import (
    ECHO,
    FOR_GUESTS,
    TIMEOUT,
    Check,
    Guests,
    OpenHost,
    admit_all,
    check_broken,
    check_echo,
    connected,
    fails,
    open_hosts,
    until,
)
from .contract_sockets import SOCKET_CHECKS
from .contract_streams import STREAM_CHECKS
from .host import Admission, Direction, PathKind, PeerEvent


async def check_host(open_host: OpenHost) -> None:
    """Run all checks, each with hosts of its own."""
    for check in CHECKS:
        with trio.fail_after(60):
            await check(open_host)


async def check_a_connection_is_seen_on_both_sides(open_host: OpenHost) -> None:
    async with open_hosts(open_host, admit_all, admit_all) as (near, far):
        assert near.peer_id != far.peer_id
        assert all(address.endswith(f"/p2p/{far.peer_id}") for address in far.addresses)
        assert not near.connections
        assert near.path(far.peer_id) is None
        made = await near.connect(far.peer_id, far.addresses)
        assert made.peer_id == far.peer_id
        assert (made.direction, made.path) == (Direction.OUTBOUND, PathKind.DIRECT)
        assert await near.events.receive() == PeerEvent(peer_id=far.peer_id, path=PathKind.DIRECT)
        assert await far.events.receive() == PeerEvent(peer_id=near.peer_id, path=PathKind.DIRECT)
        assert [each.direction for each in far.connections] == [Direction.INBOUND]
        assert near.path(far.peer_id) is PathKind.DIRECT
        assert await near.connect(far.peer_id, []) == made
        assert 0 <= await near.ping(far.peer_id) < TIMEOUT


async def check_only_the_peer_that_is_meant_is_connected_to(open_host: OpenHost) -> None:
    async with open_hosts(open_host, admit_all, admit_all, admit_all) as (near, far, other):
        await fails(PeerUnreachable, near.connect(far.peer_id, []))
        await fails(PeerUnreachable, near.connect(far.peer_id, ["nonsense", "/ip4/127.0.0.1/udp/1"]))
        bare = [address.rpartition("/p2p/")[0] for address in other.addresses]
        await fails(PeerUnreachable, near.connect(far.peer_id, bare))
        assert near.path(far.peer_id) is near.path(other.peer_id) is None
        await near.connect(far.peer_id, ["nonsense", *bare, *far.addresses])
        await check_echo(near, far.peer_id)


async def check_disconnecting_ends_everything(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        stream = await near.open_stream(far.peer_id, ECHO)
        await far.disconnect(near.peer_id)
        await until(lambda: not near.connections and not far.connections)
        await check_broken(stream)
        for host, peer in ((near, far), (far, near)):
            assert [(await host.events.receive()).connected for _ in range(2)] == [True, False]
            await fails(PeerUnreachable, host.open_stream(peer.peer_id, ECHO))
            await fails(PeerUnreachable, host.ping(peer.peer_id))
        await far.disconnect(near.peer_id)
        await near.connect(far.peer_id, far.addresses)
        await check_echo(near, far.peer_id)


async def check_a_host_that_leaves_breaks_its_streams(open_host: OpenHost) -> None:
    async with open_hosts(open_host, admit_all) as (near,):
        async with open_hosts(open_host, admit_all) as (far,):
            gone, addresses = far.peer_id, far.addresses
            await near.connect(gone, addresses)
            stream = await near.open_stream(gone, ECHO)
        await until(lambda: near.path(gone) is None)
        await check_broken(stream)
        await fails(PeerUnreachable, near.connect(gone, addresses, deadline=1.0))


async def check_a_stranger_is_refused(open_host: OpenHost) -> None:
    async with open_hosts(open_host, admit_all, Guests()) as (stranger, host):
        error = await fails(PeerUnreachable, stranger.connect(host.peer_id, host.addresses))
        assert error.details["refused"]
        await fails(PeerUnreachable, host.connect(stranger.peer_id, stranger.addresses))
        await until(lambda: not stranger.connections)
        assert not host.connections


async def check_a_guest_gets_the_protocols_for_guests_alone(open_host: OpenHost) -> None:
    gate = Guests()
    async with open_hosts(open_host, admit_all, gate) as (guest, host):
        gate.admitted[guest.peer_id] = Admission.GUEST
        await guest.connect(host.peer_id, host.addresses)
        await check_echo(guest, host.peer_id, FOR_GUESTS)
        await fails(Unsupported, guest.open_stream(host.peer_id, ECHO))
        gate.admitted[guest.peer_id] = Admission.MEMBER
        await check_echo(guest, host.peer_id)
        gate.admitted[guest.peer_id] = Admission.REFUSED
        await fails(TwinshareError, guest.open_stream(host.peer_id, ECHO))
        await fails(TwinshareError, guest.open_stream(host.peer_id, FOR_GUESTS))


CHECKS: Sequence[Check] = (
    check_a_connection_is_seen_on_both_sides,
    check_only_the_peer_that_is_meant_is_connected_to,
    check_disconnecting_ends_everything,
    check_a_host_that_leaves_breaks_its_streams,
    check_a_stranger_is_refused,
    check_a_guest_gets_the_protocols_for_guests_alone,
    *STREAM_CHECKS,
    *SOCKET_CHECKS,
)
