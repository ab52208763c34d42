"""The same meshes over real sockets: what the simulation cannot know is whether libp2p keeps its promises here."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.agent.p2p.hosts import LOOPBACK, until
from tests.stopwatch import Stopwatch
from twinshare.agent.p2p.context import Served
from twinshare.agent.p2p.libp2p import open_discovery, open_libp2p_host
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.mesh import Mesh, MeshSettings, make_mesh_client, open_mesh
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.simulation import SimulatedNode, simulated_vm
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import Forbidden, PeerUnreachable
from twinshare.protocols.peer import InviteRequest

PEER_TIMEOUT = 2.0


def seed_of(number: int) -> bytes:
    return b"mesh over libp2p" + number.to_bytes(16, "big")


@asynccontextmanager
async def open_real(
    member: SimulatedNode, *, listen: str = LOOPBACK, bootstrap: Sequence[str] = (), dht: bool = False
) -> AsyncIterator[Mesh]:
    settings = MeshSettings(
        open_discovery=partial(open_discovery, now=time.time, mdns=False, dht=dht),
        bootstrap=bootstrap,
        open_host=lambda gate: open_libp2p_host(
            seed_of(member.number), [listen], gate=gate, settings=HostSettings(peer_timeout=PEER_TIMEOUT)
        ),
        signer=member.signer,
        name=member.name,
        agent="twinshare/test",
        store=member.store,
        events=member.events.subscribe,
        publish=member.events.publish,
        now=time.time,
        peer_timeout=PEER_TIMEOUT,
        rng=random.Random(member.number),
    )
    async with open_mesh(await make_mesh_client(settings), Served(member.dispatcher())) as member.running:
        await member.running.start()
        try:
            yield member.running
        finally:
            member.running = None


def fresh(number: int) -> SimulatedNode:
    return SimulatedNode(number, Signer(seed_of(number)))


def all_see_all(*members: SimulatedNode) -> bool:
    ids = {member.peer_id for member in members}
    return all(member.online == ids - {member.peer_id} for member in members)


async def join(joiner: SimulatedNode, inviter: SimulatedNode, role: Role = Role.ADMIN) -> None:
    ticket = await inviter.call("invite_peer", invite=InviteRequest(role=role))
    await joiner.call("join_fleet", ticket=ticket.ticket)


async def test_three_nodes_join_call_lose_one_and_find_it_again() -> None:
    a, b, c = (fresh(number) for number in range(3))
    c.vms["web"] = simulated_vm("web")
    async with open_real(a), open_real(b):
        await join(b, a)
        async with open_real(c):
            stopwatch = Stopwatch()
            await join(c, b)
            await until(lambda: all_see_all(a, b, c))
            assert stopwatch.seconds < 2
            assert [row.name for row in await a.ask("node-2", "list_vms")] == ["web"]
            assert (await a.call("ping_peer", peer="node-2")).path == "direct"
            assert [row.reachable for row in (await b.mesh.fleet_vms(LOCAL_ADMIN)).vms] == [True]
        await until(lambda: all_see_all(a, b))
        with pytest.raises(PeerUnreachable):
            await a.ask("node-2", "list_vms")
        assert [row.reachable for row in (await b.mesh.fleet_vms(LOCAL_ADMIN)).vms] == [False]
        async with open_real(c):
            await until(lambda: all_see_all(a, b, c))
            await a.call("revoke_peer", peer="node-2")
            await until(lambda: all_see_all(a, b) and not c.online)


async def test_a_used_ticket_is_refused_and_the_services_start_again() -> None:
    a, b, c = (fresh(number) for number in range(3))
    async with open_real(a), open_real(b), open_real(c):
        ticket = await a.call("invite_peer", invite=InviteRequest())
        await b.call("join_fleet", ticket=ticket.ticket)
        with pytest.raises(Forbidden, match="used up"):
            await c.call("join_fleet", ticket=ticket.ticket)
        assert a.mesh.running
        await b.call("stop_p2p")
        await until(lambda: not a.online)
        await b.call("start_p2p")
        await until(lambda: all_see_all(a, b))


async def test_cancellations_leave_the_connection_whole() -> None:
    a, b = fresh(0), fresh(1)
    rng = random.Random(1)
    done = cancelled = 0
    async with open_real(a), open_real(b):
        await join(b, a)
        await until(lambda: all_see_all(a, b))
        session = await a.mesh.require_running().sessions.session_to(b.peer_id)

        async def work() -> None:
            nonlocal done, cancelled
            for _ in range(100):  # 3,200 in all: fewer than a peer may begin at once, however fast the machine is
                with trio.move_on_after(rng.choice([0.001, 0.005, 30])) as scope:
                    await a.ask("node-1", "list_vms")
                    done += 1
                cancelled += scope.cancelled_caught

        async with trio.open_nursery() as workers:
            for _ in range(32):
                workers.start_soon(work)
        assert done > 50
        assert cancelled > 20
        assert await a.mesh.require_running().sessions.session_to(b.peer_id) is session
        await until(lambda: session.in_flight <= 1)


async def test_a_ticket_of_the_loopback_alone_says_so() -> None:
    node = fresh(0)
    async with open_real(node):
        made = await node.call("invite_peer", invite=InviteRequest())
    assert [address.rpartition("/")[0] for address in made.addresses] == ["/ip4/127.0.0.1/tcp"]
    assert made.warnings
    assert "this machine alone" in made.warnings[0]
