"""A peer that moved and is known to the table alone is found there."""

from __future__ import annotations

import os
import time

import pytest
import trio

from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.discovery import SignedRecord
from twinshare.agent.p2p.host import Host
from twinshare.agent.p2p.libp2p import discovery, open_discovery
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.agent.p2p.records import OwnRecord
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.p2p.store import MemoryKeyValueStore

from .hosts import open_echo, talks, until


def signed(host: Host, seed: bytes) -> SignedRecord:
    own = OwnRecord(Signer(seed), MemoryKeyValueStore(), time.time, 0)
    return lambda: own.signed(host.addresses)


async def test_a_peer_is_found_through_a_third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_LOOK_EVERY", 0.05)
    seeds = [os.urandom(32) for _ in range(3)]
    async with (
        open_echo(seed=seeds[0]) as middle,
        open_echo(seed=seeds[1]) as seeker,
        open_echo(seed=seeds[2]) as moved,
        open_discovery(middle, signed(middle, seeds[0]), time.time, mdns=False) as at_middle,
        open_discovery(seeker, signed(seeker, seeds[1]), time.time, mdns=False) as at_seeker,
        open_discovery(moved, signed(moved, seeds[2]), time.time, mdns=False) as at_moved,
        trio.open_nursery() as nursery,
    ):
        for finder in (*at_middle, *at_seeker, *at_moved):
            nursery.start_soon(finder.run, lambda *_: None)
        for host in (seeker, moved):
            await host.connect(middle.peer_id, middle.addresses)
        found: list[str] = []

        async def find_peer() -> None:
            while not found:
                found.extend(await at_seeker[0].find_peer(moved.peer_id))

        with trio.fail_after(60):
            await find_peer()
        assert set(moved.addresses) <= {*found, *(f"{each}/p2p/{moved.peer_id}" for each in found)}
        await seeker.connect(moved.peer_id, found)
        await talks(seeker, moved.peer_id)
        assert await at_seeker[0].find_peer("12D3KooWA1b2c3d4e5") == []
        nursery.cancel_scope.cancel()


async def test_a_host_in_memory_has_no_finders() -> None:
    async with (
        open_memory_host(MemoryNetwork(), "a", admit_all) as host,
        open_discovery(host, signed(host, bytes(32)), time.time) as found,
    ):
        assert list(found) == []


async def test_leaving_takes_the_table_along() -> None:
    async with open_echo() as host:
        before = set(host.protocols)
        async with open_discovery(host, signed(host, bytes(32)), time.time, mdns=False):
            assert len(set(host.protocols) - before) == 1
        await until(lambda: set(host.protocols) == before)
