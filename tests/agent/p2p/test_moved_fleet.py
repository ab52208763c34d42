"""Every node of a fleet moves at once: the address books are of no use, and one bootstrap peer is known."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import trio

from tests.ports import free_port
from twinshare.agent.p2p.gossip import Gossip
from twinshare.agent.p2p.libp2p import discovery
from twinshare.agent.simulation import SimulatedNode
from twinshare.protocols.mesh import PeerRecord

from .hosts import until
from .test_mesh_libp2p import all_see_all, fresh, join, open_real

SIZE = 8


async def first_hand_only(gossip: Gossip, records: Sequence[PeerRecord], source: str) -> list[PeerRecord]:
    """Take the records of peers from themselves alone, as a node does to which nobody passes any on."""
    await trio.lowlevel.checkpoint()
    taken = [record for record in records if record.peer == source]
    for record in taken:
        await gossip._context.address_book.declare(record, first_hand=True)
    return []


async def live_once(members: Sequence[SimulatedNode], *, bootstrap: Sequence[str], dht: bool) -> None:
    """Start all nodes at ports that they never had; the first at the bootstrap address, if there is one."""
    async with AsyncExitStack() as stack:
        for member in members:
            own = [address.partition("/p2p/")[0] for address in bootstrap if member.peer_id in address]
            listen = own[0] if own else "/ip4/127.0.0.1/tcp/0"
            await stack.enter_async_context(open_real(member, listen=listen, bootstrap=bootstrap, dht=dht))
            if not bootstrap and member.number:
                await join(member, members[0])
        await until(lambda: all_see_all(*members), 60)


@pytest.mark.parametrize("gossip", [True, False])
async def test_a_fleet_that_moved_finds_itself_through_one_peer(gossip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_LOOK_EVERY", 0.2)
    members = [fresh(number) for number in range(SIZE)]
    await live_once(members, bootstrap=(), dht=False)
    if not gossip:
        monkeypatch.setattr(Gossip, "_take_records", first_hand_only)
    known = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{members[0].peer_id}"
    await live_once(members, bootstrap=[known], dht=True)
