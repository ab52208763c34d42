"""Fleets that never rest, on a virtual clock: nodes die and come back elsewhere, sessions break, the network context.

At the end the network is whole, and everybody must find everybody again in time. A seed gives the same day again.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.host import DIAL_DEADLINE, Connection
from twinshare.agent.simulation import Cluster, open_cluster

HOUR = 3600.0


@pytest.fixture(autouse=True)
def _quiet(_no_unexpected_errors: None) -> None:
    """A day has ten thousand debug sessions; to write them costs a third of its time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


async def disturb(cluster: Cluster, rng: random.Random) -> None:
    """One thing that happens to a fleet."""
    size, what = len(cluster.nodes), rng.random()
    if what < 0.8:
        number = rng.randrange(size)
        await cluster.kill(number)
        await trio.sleep(rng.choice([0.1, 1, 60, 900]))
        await cluster.start(number)
    elif what < 0.9:
        ids = [member.peer_id for member in cluster.nodes]
        rng.shuffle(ids)
        edge = rng.randrange(1, size)
        cluster.network.partition(ids[:edge], ids[edge:])
        await trio.sleep(rng.uniform(1, 900))
        cluster.network.heal()
    else:
        one, other = rng.sample(cluster.nodes, 2)
        cluster.network.drop(one.peer_id, other.peer_id)


async def churn(seed: int, size: int, hours: float) -> float:
    """30 % of the nodes restart every hour; tells how long the fleet then took to see itself whole."""
    rng = random.Random(seed)
    async with open_cluster(size, seed=seed, peer_timeout=2 * HOUR) as cluster:
        cluster.connection_timeout = 30.0
        end = trio.current_time() + hours * HOUR
        while trio.current_time() < end:
            await trio.sleep(rng.expovariate(size * 0.3 / 0.8 / HOUR))
            await disturb(cluster, rng)
        return await cluster.until(cluster.converged, 30)


@pytest.mark.parametrize("seed", range(3))
async def test_hours_of_churn_end_with_everybody_seeing_everybody(seed: int, autojump_clock: MockClock) -> None:
    assert await churn(seed, size=5, hours=6) < 30


@pytest.mark.system
@pytest.mark.parametrize("seed", range(int(os.environ.get("TWINSHARE_CHURN_SEEDS", "5"))))
async def test_a_day_of_churn(seed: int, autojump_clock: MockClock) -> None:
    assert await churn(1000 + seed, size=6, hours=24) < 30


async def test_a_cut_of_many_minutes_is_over_in_seconds(autojump_clock: MockClock) -> None:
    """Pauses have grown meanwhile, and nothing reports that the network is whole again."""
    async with open_cluster(2) as cluster:
        one, other = (node.peer_id for node in cluster.nodes)
        host, dials = cluster[0].mesh.require_running().host, []
        connect = host.connect

        async def noted(*args: Any, **more: Any) -> Connection:
            dials.append(trio.current_time())
            return await connect(*args, **more)

        host.connect = noted  # type: ignore[method-assign]  # to count
        for minutes, slowest in ((45, 9.0), (180, 22.5)):
            dials.clear()
            cluster.network.partition([one], [other])
            await trio.sleep(minutes * 60)
            pauses = [after - before - DIAL_DEADLINE for before, after in pairwise(dials)]
            assert slowest * 0.7 < max(pauses[10:]) <= slowest
            cluster.network.heal()
            assert await cluster.until(cluster.converged, 60) < slowest + 1


@pytest.mark.parametrize("size", [10, pytest.param(40, marks=pytest.mark.system)])
async def test_a_fleet_sees_all_of_itself(
    size: int, autojump_clock: MockClock, record_property: Callable[[str, object], None]
) -> None:
    async with open_cluster() as cluster:
        await cluster.grow(size)
        took = await cluster.until(cluster.converged, 10)
        record_property("virtual seconds after the last has joined", took)
        # After a power cut all come back at once, each at another address but one.
        for number in range(1, size):
            await cluster.kill(number)
        await trio.sleep(HOUR)
        for number in range(1, size):
            await cluster.start(number)
        took = await cluster.until(cluster.converged, 60)
        record_property("virtual seconds after a power cut", took)
        assert took < 30
