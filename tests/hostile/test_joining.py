"""A14: strangers without a ticket keep nobody from joining, on real sockets."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import trio

from tests.agent.p2p.test_mesh_libp2p import fresh, open_real
from tests.nodes.fleet import agent_file, ask, online, start
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.protocols.errors import TwinshareError

STRANGERS = 40


async def stay(peer_id: str, addresses: list[str], arrived: trio.MemorySendChannel[None]) -> None:
    """Connect as somebody whom nobody knows, and again whenever the connection ends."""
    async with open_libp2p_host(os.urandom(32), [], gate=admit_all) as host:
        while True:
            with suppress(TwinshareError):
                await host.connect(peer_id, addresses)
                with suppress(trio.WouldBlock):
                    arrived.send_nowait(None)
            while host.path(peer_id) is not None:
                await trio.sleep(0.2)
            await trio.sleep(0.5)


async def test_a14_forty_strangers_keep_nobody_from_joining(tmp_path: Path) -> None:
    agent = await start(tmp_path / "node", hypervisor="fake://")
    try:
        ticket = await ask(agent, "POST", "/api/p2p/invite", {"role": "viewer", "uses": 5})
        own = agent_file(agent)["peer_id"]
        addresses = (await ask(agent, "GET", "/api/p2p/info"))["addresses"]
        send, receive = trio.open_memory_channel[None](1000)
        async with trio.open_nursery() as nursery:
            for _ in range(STRANGERS):
                nursery.start_soon(stay, own, addresses, send)
            with trio.fail_after(60):
                for _ in range(STRANGERS):
                    await receive.receive()
            for number in range(2):
                joiner = fresh(number)
                async with open_real(joiner):
                    with trio.fail_after(20):
                        await joiner.call("join_fleet", ticket=ticket["ticket"])
                        while joiner.name not in await online(agent):
                            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    finally:
        await agent.stop()
