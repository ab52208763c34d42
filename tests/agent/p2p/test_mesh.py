"""Fleets in memory: joining, finding each other again, calling, putting out. The clock is virtual."""

import contextlib

import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.agent.simulation import open_cluster, simulated_vm
from twinshare.protocols.access import Caller, Limits, Role
from twinshare.protocols.errors import (
    AmbiguousName,
    P2pStopped,
    PeerNotFound,
    PeerUnreachable,
    TooLarge,
    VmNotFound,
)
from twinshare.protocols.mesh import GossipUpdate
from twinshare.protocols.peer import InviteRequest, Message
from twinshare.protocols.vm import VmSpec


async def test_a_node_that_joins_works_with_all_at_once(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        fourth = await cluster.add()
        assert fourth.online == set()
        began = trio.current_time()
        await cluster.join(fourth, cluster[1])
        assert await cluster.until(cluster.converged, 2) < 2
        for member in cluster.nodes[:3]:
            await fourth.ask(member.name, "create_vm", spec=VmSpec(name="web", image="tiny"))
            [(caller, _)] = [entry for entry in member.done if entry[1] == "create_vm"]
            assert (caller.principal, caller.role) == (fourth.peer_id, Role.ADMIN)
        assert trio.current_time() - began < 3
        peers = await fourth.call("list_peers")
        assert [(peer.name, peer.status, peer.path) for peer in peers] == [
            (f"node-{number}", "online", "direct") for number in range(3)
        ]
        assert [event.type for event in cluster[0].events.kept].count("peer.online") == 3


async def test_errors_of_a_peer_and_calls_to_oneself_look_alike(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        a, b = cluster.nodes
        for peer in (b.peer_id, b.name, a.peer_id, a.name, "local"):
            with pytest.raises(VmNotFound, match="no VM is called 'x' here"):
                await a.ask(peer, "get_vm", vm="x")


async def test_references_to_peers(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        a, b, c = cluster.nodes
        assert a.mesh.resolve(b.peer_id[:20]) == b.peer_id
        with pytest.raises(AmbiguousName) as ambiguous:
            a.mesh.resolve("12D3KooW")
        assert ambiguous.value.details["peers"] == sorted([a.peer_id, b.peer_id, c.peer_id])
        with pytest.raises(PeerNotFound, match="'nobody'"):
            await a.call("get_peer", peer="nobody")
        assert (await a.call("get_peer", peer="node-0")).id == a.peer_id
        assert (await a.call("get_peer", peer="node-1")).name == "node-1"


async def test_two_peers_of_one_name_are_listed(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        a, b, c = cluster.nodes
        renewed = await a.mesh.context.membership.issue(c.peer_id, "node-1", Role.ADMIN, Limits())
        await b.mesh.context.membership.learn(GossipUpdate(members=[renewed]))
        with pytest.raises(AmbiguousName, match=r"'node-1' may be any of node-1 .* node-1 "):
            await a.ask("node-1", "list_vms")


async def test_ping_and_messages(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        a, b = cluster.nodes
        ping = await a.call("ping_peer", peer="node-1")
        assert (ping.id, ping.path) == (b.peer_id, "direct")
        hello = await a.call("send_message", message=Message(peer_id="node-1", message_type="HELLO", data={"m": 1}))
        assert (hello.status, hello.message) == ("ok", "Hello received")
        note = Message(peer_id=b.peer_id, message_type="NOTE", data={"text": "hi"})
        assert (await a.call("send_message", message=note)).status == "ok"
        assert b.events.kept[-1].data == {
            "from": a.peer_id,
            "name": "node-0",
            "message_type": "NOTE",
            "data": {"text": "hi"},
        }
        large = Message(peer_id="node-1", message_type="NOTE", data={"text": "x" * 70_000})
        with pytest.raises(TooLarge):
            await a.call("send_message", message=large)


async def test_a_killed_node_is_offline_at_once_and_found_again_at_another_address(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        await cluster.kill(2)
        assert await cluster.until(lambda: cluster.converged(0, 1), 1) < 1
        peer = await cluster[0].call("get_peer", peer="node-2")
        assert (peer.status, peer.services, peer.path) == ("offline", [], None)
        assert peer.last_seen is not None
        began = trio.current_time()
        with pytest.raises(PeerUnreachable):
            await cluster[0].ask("node-2", "list_vms")
        assert trio.current_time() - began < 6
        await trio.sleep(600)
        await cluster.start(2)
        assert await cluster.until(cluster.converged, 10) < 10


async def test_a_call_to_a_peer_that_was_away_waits_for_the_line_that_comes_up(autojump_clock: MockClock) -> None:
    async with open_cluster(2, network=MemoryNetwork(delay=lambda _one, _other: 0.1)) as cluster:
        await cluster.kill(1)
        with pytest.raises(PeerUnreachable):
            await cluster[0].ask("node-1", "list_vms")
        await trio.sleep(60)
        await cluster.start(1)
        assert cluster[0].online == set()
        await trio.sleep(0.35)
        assert await cluster[0].ask("node-1", "list_vms") == []


async def test_nodes_that_all_come_back_elsewhere_find_each_other_by_the_one_that_stayed(
    autojump_clock: MockClock,
) -> None:
    async with open_cluster(5) as cluster:
        for number in (0, 1, 2, 3):
            await cluster.kill(number)
        await trio.sleep(3600)
        for number in (0, 1, 2, 3):
            await cluster.start(number)
        assert await cluster.until(cluster.converged, 30) < 30


async def test_a_silent_node_is_offline_in_time_and_its_calls_fail_before(autojump_clock: MockClock) -> None:
    async with open_cluster(3, peer_timeout=2) as cluster:
        cluster.network.freeze(cluster[2].peer_id)
        began = trio.current_time()
        with pytest.raises(PeerUnreachable):
            await cluster[0].ask("node-2", "list_vms")
        assert trio.current_time() - began < 6
        assert await cluster.until(lambda: cluster.converged(0, 1), 4) < 4
        cluster.network.heal()
        assert await cluster.until(cluster.converged, 30) < 30


async def test_a_partition_parts_and_heals(autojump_clock: MockClock) -> None:
    async with open_cluster(6) as cluster:
        halves = [[cluster[n].peer_id for n in (0, 1, 2)], [cluster[n].peer_id for n in (3, 4, 5)]]
        cluster.network.partition(*halves)
        await cluster.until(lambda: cluster.converged(0, 1, 2) and cluster.converged(3, 4, 5), 25)
        # Both sides go on: each lets a node in.
        for inviter in (0, 3):
            joiner = await cluster.add()
            cluster.network.partition(
                *[[*half, joiner.peer_id] if cluster[inviter].peer_id in half else half for half in halves]
            )
            await cluster.join(joiner, cluster[inviter])
            halves = [[*half, joiner.peer_id] if cluster[inviter].peer_id in half else half for half in halves]
        cluster.network.heal()
        assert await cluster.until(cluster.converged, 40) < 40


async def test_stop_and_start_of_the_services(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        a, b = cluster.nodes
        b.vms["web"] = simulated_vm("web")
        assert (await a.call("start_p2p")).status == "started"
        state = await a.call("stop_p2p")
        assert (state.status, state.id) == ("stopped", a.peer_id)
        for call in (
            a.ask("node-1", "list_vms"),
            a.call("ping_peer", peer="node-1"),
            a.call("join_fleet", ticket="x"),
            a.call("invite_peer", invite=InviteRequest()),
        ):
            with pytest.raises(P2pStopped, match="P2P services are not running"):
                await call
        assert (await a.call("p2p_info")).status == "stopped"
        assert (await a.call("list_peers"))[0].status == "offline"
        assert await cluster.until(lambda: b.online == set(), 1) < 1
        assert (await a.call("start_p2p")).id == a.peer_id
        assert await cluster.until(cluster.converged, 10) < 10
        assert [vm.name for vm in await a.ask("node-1", "list_vms")] == ["web"]


async def test_a_hundred_lost_connections_and_fifty_deaths_leave_no_task_behind(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        await trio.sleep(60)
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(100):
            cluster.network.drop(cluster[0].peer_id, cluster[1].peer_id)
            await cluster.until(cluster.converged, 30)
        for _ in range(50):
            await cluster.kill(2)
            await cluster.start(2)
            await cluster.until(cluster.converged, 30)
        await trio.sleep(60)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(cluster.network.connections) == 3
        assert all(member.mesh.require_running()._server.in_flight == 2 for member in cluster.nodes)  # event feeds


async def test_a_thousand_strangers_are_turned_away_and_leave_nothing(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        host = cluster[0].mesh.require_running().host
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(1000):
            async with open_memory_host(cluster.network, f"stranger-{number}", admit_all) as stranger:
                with pytest.raises(PeerUnreachable):
                    await stranger.connect(host.peer_id, host.addresses)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert await cluster[1].ask("node-0", "list_vms") == []


# -- the fleet's VMs


async def test_the_fleets_vms_are_one_list_that_never_waits_for_the_dead(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        for member in cluster.nodes:
            member.vms[f"vm-{member.number}"] = simulated_vm(f"vm-{member.number}")
        reader = Caller(principal="token:r", role=Role.VIEWER)
        rows = (await cluster[0].mesh.fleet_vms(reader)).vms
        assert {(row.name, row.node, row.reachable) for row in rows} == {
            (f"vm-{n}", f"node-{n}", True) for n in range(3)
        }
        # What happens just before a node dies is still known: its events have shown it.
        await cluster[1].ask("node-2", "create_vm", spec=VmSpec(name="late", image="tiny"))
        await trio.sleep(1)
        cluster.network.freeze(cluster[2].peer_id)
        for _ in range(30):
            began = trio.current_time()
            rows = (await cluster[0].mesh.fleet_vms(reader)).vms
            assert trio.current_time() - began < 2
            seen = {(row.name, row.reachable) for row in rows}
            assert seen == {("vm-0", True), ("vm-1", True), ("vm-2", False), ("late", False)}
            await trio.sleep(1)
        assert all(row.observed_at is not None for row in rows)
        cluster.network.heal()
        await cluster.until(cluster.converged, 30)
        assert all(row.reachable for row in (await cluster[0].mesh.fleet_vms(reader)).vms)
        await cluster[0].call("stop_p2p")
        assert len((await cluster[0].mesh.fleet_vms(reader)).vms) == 4
        with contextlib.suppress(P2pStopped):
            await cluster[0].ask("node-1", "list_vms")
