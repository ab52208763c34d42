"""B5: two nodes that run with one identity are reported by whoever sees both."""

from __future__ import annotations

import trio.lowlevel
from trio.testing import MockClock

from twinshare.agent.p2p.instances import REPORTED_FOR, Instances
from twinshare.agent.simulation import SimulatedNode, open_cluster


def test_a_start_anew_is_no_copy_and_taking_turns_is_one() -> None:
    instances = Instances()
    for instance in ("a", "a", "b", "b", "", "c"):
        instances.observe("peer", instance, 0.0)
    assert not list(instances.copied(1.0))
    instances.observe("peer", "b", 2.0)
    assert list(instances.copied(3.0)) == ["peer"]
    assert not list(instances.copied(3.0 + REPORTED_FOR))


async def test_b5_a_copy_of_a_node_is_named_in_the_health_of_the_others(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        assert [node.mesh.problems for node in cluster.nodes] == [[], [], []]
        await cluster.kill(1)
        await cluster.start(1)
        await cluster.until(cluster.converged, 60)
        assert cluster[0].mesh.problems == []
        original = cluster[1]
        copy = SimulatedNode(original.number, original.signer, store=original.store)
        cluster.nodes.append(copy)
        await cluster.start(3)
        await cluster.until(lambda: bool(cluster[0].mesh.problems), 300)
        [said] = cluster[0].mesh.problems
        assert "two nodes run with the identity of node-1" in said
        assert original.peer_id in said
        await trio.lowlevel.checkpoint()
