"""Real agents in one fleet, each a process: a far read through REST against a near one, and what ten peers cost."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import trio

from scripts.benchmarks._looks import ask, cpu, once, rss
from scripts.benchmarks.rows import Row
from tests.nodes.fleet import fleet
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

PEERS = 10
ROUNDS = 5
REQUESTS = 200
SETTLE, IDLE = 5.0, 30.0


async def measure() -> list[Row]:
    """As users run them, multicast and all, but on the in-memory hypervisor."""
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        async with fleet(Path(folder), PEERS + 1, peer_timeout=15.0, mdns=True) as nodes:
            return [*await _far(nodes[0], nodes[1]), *await _burden(nodes)]


async def _far(near: AgentProcess, far: AgentProcess) -> list[Row]:
    for node in (near, far):
        async with RESTClient(node.url) as client:
            await client.import_image("blank", once(bytes(1 << 20)))
            await client.create_vm("one", "blank", memory=64, disk_size=1, cpu_cores=1)
    port = int(near.url.rpartition(":")[2])
    paths = {"here": "/api/vm/one", "there": f"/api/remote/{far.data_dir.name}/vm/one"}
    taken: dict[str, list[float]] = {"here": [], "there": []}
    for _ in range(ROUNDS):
        for name, path in paths.items():
            taken[name] += ask(port, path, REQUESTS)
    here, there = (statistics.median(taken[name]) * 1e3 for name in ("here", "there"))
    return [
        Row(name="REST: GET a VM of a peer, p50, to one here", value=there, unit="ms", baseline=here, limit=2.5,
            note="baseline: one of this node"),
    ]  # fmt: skip


async def _burden(nodes: list[AgentProcess]) -> list[Row]:
    await trio.sleep(SETTLE)
    before = [cpu(node.pid) for node in nodes]
    await trio.sleep(IDLE)
    idle = [(cpu(node.pid) - then) / IDLE * 100 for node, then in zip(nodes, before, strict=True)]
    memory = [rss(node.pid) for node in nodes]
    return [
        Row(name=f"memory of an agent with {PEERS} peers", value=max(memory), unit="MB", limit=110.0,
            note=f"the largest of {len(nodes)}; median {statistics.median(memory):.0f} MB"),
        Row(name=f"CPU of an idle agent with {PEERS} peers", value=max(idle), unit="%", limit=1.0,
            note=f"the busiest of {len(nodes)} over {IDLE:.0f} s; median {statistics.median(idle):.2f} %"),
    ]  # fmt: skip
