"""Two hosts behind two routers that translate addresses: relayed first, then direct. Needs root."""

from __future__ import annotations

import pytest
import trio

from tests.interop.peers import Peer

from .hosts import peer_process
from .routers import two_routers

pytestmark = pytest.mark.system


async def wait_for_path(peer: Peer, other: Peer, path: str, seconds: float) -> None:
    with trio.fail_after(seconds):
        while await peer.call("path", peer=other.peer_id) != path:
            await trio.sleep(0.1)


async def relayed_addresses(peer: Peer) -> list[str]:
    """Once it has a place."""
    with trio.fail_after(60):
        while not (found := [each for each in await peer.call("addresses") if "p2p-circuit" in each]):
            await trio.sleep(0.1)
    return found


async def test_two_nodes_behind_two_routers_meet_through_a_relay_and_then_directly() -> None:
    with two_routers() as routers:
        listen = "/ip4/0.0.0.0/tcp/4001"
        async with (
            peer_process(*routers.in_the_open, listen=listen, relay=True) as relay,
            peer_process(*routers.behind_one, listen=listen, relay=True) as one,
            peer_process(*routers.behind_two, listen=listen, relay=True) as two,
        ):
            for peer in (one, two):
                await peer.call("connect", peer=relay.peer_id, addresses=relay.addresses)
            known = await relayed_addresses(two)
            direct = [each for each in two.addresses if "p2p-circuit" not in each]
            assert await one.call("connect", peer=two.peer_id, addresses=[*direct, *known]) == "relayed"
            assert await one.call("talk", peer=two.peer_id, size=100_000) == 100_000
            for peer, other in ((one, two), (two, one)):
                await wait_for_path(peer, other, "direct", 15)
            assert await one.call("talk", peer=two.peer_id, size=1_000_000) == 1_000_000
            relay.process.kill()
            assert await two.call("talk", peer=one.peer_id, size=1_000_000) == 1_000_000
