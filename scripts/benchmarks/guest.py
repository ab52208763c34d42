"""Inside a real guest, `tiny` in emulation: commands, copies against the bare port and QEMU's agent, many sessions."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from scripts.benchmarks._guest_copies import copies
from scripts.benchmarks._guest_ports import open_bare_port
from scripts.benchmarks._looks import cpu, once, rss
from scripts.benchmarks.rows import Row
from tests.guest.disks import tiny_disk
from tests.nodes.fleet import ask, join, start, until_online
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

MIB = 1 << 20
COMMANDS = 30
SPAWNS = 50
SESSIONS = 100
IDLE = 20.0
BOOT = 180.0
PEER = "owner"


async def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        home = Path(folder)
        rows = await _idle(home)
        near = await start(home / "near", hypervisor="fake://")
        owner = await start(home / PEER)
        try:
            await join(owner, near)
            await until_online(near, PEER)
            await _create(owner)
            rows += await _commands(near, owner)
            async with open_bare_port(home, await tiny_disk()) as port:
                rows += await copies(owner, port)
            rows += await _sessions(owner)
            async with RESTClient(owner.url) as client:
                await client.delete_vm("one", force=True)
        finally:
            with trio.CancelScope(shield=True):
                await owner.stop()
                await near.stop()
    return rows


async def _create(owner: AgentProcess) -> None:
    async with RESTClient(owner.url) as client:
        await client.import_image("tiny", await tiny_disk())
        await client.create_vm("one", "tiny", memory=256, disk_size=1, cpu_cores=1, network="isolated", start=True)
        with trio.fail_after(BOOT):
            while not (await client.guests().show_guest("one")).ready:  # noqa: ASYNC110 - in another process
                await trio.sleep(0.1)


async def _median(times: int, call: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds that one of so many calls takes."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)


async def _commands(near: AgentProcess, owner: AgentProcess) -> list[Row]:
    """What the guest itself needs for a command is the time in which its shell runs one."""
    async with RESTClient(owner.url) as here, RESTClient(near.url) as there:
        loop = f"i=0; while [ $i -lt {SPAWNS} ]; do i=$((i + 1)); /bin/true; done"
        empty = await _median(5, lambda: here.exec_vm("one", ["true"]))
        own = max(0.0, await _median(3, lambda: here.exec_vm("one", ["sh", "-c", loop])) - empty) / SPAWNS
        local = await _median(COMMANDS, lambda: here.exec_vm("one", ["true"]))
        remote = await _median(COMMANDS, lambda: there.exec_vm("one", ["true"], PEER))
    rtt = (await ask(near, "POST", f"/api/p2p/peers/{PEER}/ping"))["rtt"]
    note = f"median {local:.0f} ms; the guest's own {own:.0f} ms"
    return [
        Row(name="exec `true`, beyond the guest's own time", value=local - own, unit="ms", limit=60.0, note=note),
        Row(name="exec `true` through a peer, beyond that and the RTT", value=remote - own - rtt, unit="ms", limit=60.0,
            note=f"median {remote:.0f} ms; RTT {rtt:.1f} ms"),
    ]  # fmt: skip


async def _sessions(owner: AgentProcess) -> list[Row]:
    """So many at once; each has written, and waits for its input."""
    async with RESTClient(owner.url) as client:
        before, began, ids = rss(owner.pid), time.perf_counter(), []

        async def begin(number: int) -> None:
            command = ["sh", "-c", f"echo {number}; read line; exit 7"]
            ids.append((await client.exec_vm("one", command, detach=True, interactive=True)).session)

        async with trio.open_nursery() as nursery:
            for number in range(SESSIONS):
                nursery.start_soon(begin, number)
        with trio.fail_after(120):
            while await _written(client) < SESSIONS:  # noqa: ASYNC110 - in another process
                await trio.sleep(0.2)
        taken, grown = time.perf_counter() - began, (rss(owner.pid) - before) * 1e6 / 1024 / SESSIONS
        for id in ids:
            await client.guests().end_vm_session("one", id)
    return [
        Row(name=f"{SESSIONS} sessions of one VM at once: until all have written", value=taken, unit="s", limit=60.0),
        Row(name="memory of an agent for a session", value=grown, unit="KiB", limit=64.0),
    ]


async def _written(client: RESTClient) -> int:
    """How many sessions have written something."""
    return sum(session.offset > 0 for session in await client.guests().list_vm_sessions("one"))


async def _idle(home: Path) -> list[Row]:
    """Two nodes on the in-memory hypervisor, with a channel that is connected and without one."""
    spent: dict[str, float] = {}
    nodes = [
        await start(home / name, hypervisor=uri)
        for name, uri in (("with", "fake://?guest_program=1"), ("without", "fake://"))
    ]
    try:
        for node in nodes:
            async with RESTClient(node.url) as client:
                await client.import_image("blank", once(bytes(MIB)))
                await client.create_vm("one", "blank", memory=64, disk_size=1, cpu_cores=1, start=True)
        async with RESTClient(nodes[0].url) as client:
            await client.exec_vm("one", ["true"])
        await trio.sleep(5)
        before = [cpu(node.pid) for node in nodes]
        await trio.sleep(IDLE)
        for node, then in zip(nodes, before, strict=True):
            spent[node.data_dir.name] = (cpu(node.pid) - then) * 1e3
    finally:
        with trio.CancelScope(shield=True):
            for node in nodes:
                await node.stop()
    return [
        Row(name=f"CPU of an idle guest channel in {IDLE:.0f} s", value=spent["with"] - spent["without"], unit="ms",
            limit=40.0, note=f"an agent with one {spent['with']:.0f} ms, without {spent['without']:.0f} ms"),
    ]  # fmt: skip
