"""Hundreds of cancellations anywhere, against a host in another process: nothing fails that was not cancelled."""

from __future__ import annotations

import random

import pytest
import trio

from twinshare.agent.p2p.contract_hosts import ECHO
from twinshare.agent.p2p.host import Host
from twinshare.agent.p2p.libp2p.host import LibP2pHost

from .hosts import open_echo, peer_process, talks, until

pytestmark = pytest.mark.system

WORKERS = 32
SIZES = (1, 100, 5_000, 70_000, 400_000, 1_500_000)
TIMEOUTS = (0.002, 0.02, 0.1, 30, 30, 30)


async def exchange(host: Host, peer_id: str, data: bytes) -> None:
    stream = await host.open_stream(peer_id, ECHO, deadline=30)
    try:
        got = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(got) < len(data):
                got += await stream.receive_some(65536)
        assert got == data
    finally:
        stream.reset()


async def test_random_cancellations_over_real_sockets() -> None:
    rng = random.Random(7)
    done = cancelled = 0

    async def worker(host: LibP2pHost, peer_id: str) -> None:
        nonlocal done, cancelled
        while done < 500 or cancelled < 200:  # however fast the machine is
            data = rng.randbytes(rng.choice(SIZES))
            with trio.move_on_after(rng.choice(TIMEOUTS)) as scope:
                await exchange(host, peer_id, data)
                done += 1
            cancelled += scope.cancelled_caught

    async with peer_process() as peer, open_echo() as host:
        made = await host.connect(peer.peer_id, peer.addresses)
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(worker, host, peer.peer_id)
        assert list(host.connections) == [made]
        await talks(host, peer.peer_id)
        [live] = host.swarm.peers
        await until(lambda: live.muxer.stream_count == 0)


async def test_a_thousand_connections_come_and_go() -> None:
    async with peer_process() as peer, open_echo() as host:
        for _ in range(1000):
            await host.connect(peer.peer_id, peer.addresses)
            await host.disconnect(peer.peer_id)
        await host.connect(peer.peer_id, peer.addresses)
        await talks(host, peer.peer_id)
        with trio.fail_after(60):
            while len(await peer.call("connections")) != 1:
                await trio.sleep(0.05)
