"""One node: REST against a plain QuartTrio route, operations against virsh, start-up, memory, the loop's lateness."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from scripts.benchmarks._lives import parallel_lives
from scripts.benchmarks._looks import ask, cpu, once, rss
from scripts.benchmarks.rows import Row
from tests.guest.disks import tick_disk
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.vm import Vm, VmChange

REQUESTS = 2000
SINGLE = 400
VMS = 50
MANY_VMS = 500
OPERATIONS = 1000
LISTS = 30
LISTENERS = 100
EVENTS = 100
CONNECTIONS = 300
PROCESSES = 1000
ROUNDS = 9
IDLE = 10.0


async def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="ts-bench-") as folder:
        home = Path(folder)
        rows = await _rest(home / "rest")
        rows += await _machines(home / "qemu", home)
        return rows + await _process(home / "idle")


# REST, on the in-memory hypervisor: the application and the inventory alone are measured.


async def _rest(data_dir: Path) -> list[Row]:
    rows = []
    async with _agent(data_dir, "--hypervisor", "fake://") as agent, RESTClient(agent.url) as client:
        await client.import_image("blank", once(bytes(1 << 20)))
        made = 0
        for count, limit, times in ((VMS, 1.25, REQUESTS), (MANY_VMS, 1.5, REQUESTS // 5)):
            for number in range(made, count):
                await client.create_vm(f"vm-{number}", "blank", memory=64, disk_size=1, cpu_cores=1)
            made = count
            rows.append(_list_of(agent, count, limit, times))
            if count == VMS:
                rows.append(_p50(agent))
                rows.append(_connection(agent))
        for number in range(OPERATIONS - made):
            await client.vms().update_vm("vm-0", change=VmChange(labels={"n": str(number)}))
        spent = _cpu_of(agent.pid, lambda: ask(_port(agent), "/api/operations", LISTS)) / LISTS
        name = f"GET /api/operations, {OPERATIONS} rows: CPU"
        rows.append(Row(name=name, value=spent * 1e3, unit="ms", limit=15.0))
        rows.append(await _events(agent, client))
    return rows


def _connection(agent: AgentProcess) -> Row:
    """What a connection costs more than a request on one that is open, while many processes run."""

    def connect() -> None:
        for _ in range(CONNECTIONS):
            ask(_port(agent), "/api/whoami", 1)

    with _processes(PROCESSES):
        alone = _cpu_of(agent.pid, lambda: ask(_port(agent), "/api/whoami", CONNECTIONS))
        spent = (_cpu_of(agent.pid, connect) - alone) / CONNECTIONS
    name = f"a connection, {PROCESSES} processes: CPU"
    return Row(name=name, value=spent * 1e3, unit="ms", limit=1.0)


@contextmanager
def _processes(count: int) -> Iterator[None]:
    """So many processes that sleep, not our own children."""
    command = ["sh", "-c", f"for _ in $(seq {count}); do sleep 600 & done; echo; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as shell:
        try:
            if shell.stdout is not None:
                shell.stdout.readline()
            yield
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def _port(agent: AgentProcess) -> int:
    return int(agent.url.rpartition(":")[2])


def _list_of(agent: AgentProcess, count: int, limit: float, times: int) -> Row:
    """The middle one of three ratios, each of two measurements right after each other."""
    ratios = []
    with _plain_app(count) as (plain_pid, plain_port):
        for _ in range(3):
            ours = _cpu_of(agent.pid, lambda: ask(_port(agent), "/api/vm", times))
            plain = _cpu_of(plain_pid, lambda: ask(plain_port, "/api/vm", times))
            ratios.append((ours / plain, ours, plain))
    _, ours, plain = sorted(ratios)[1]
    return Row(
        name=f"GET /api/vm, {count} VMs: CPU a request", unit="ms", limit=limit,
        value=ours / times * 1e3, baseline=plain / times * 1e3, note="baseline: a plain QuartTrio route, msgspec",
    )  # fmt: skip


def _p50(agent: AgentProcess) -> Row:
    times = sorted(ask(_port(agent), "/api/vm", SINGLE))
    return Row(name="GET /api/vm: p50, one client", value=times[len(times) // 2] * 1e3, unit="ms", limit=3.0)


async def _events(agent: AgentProcess, client: RESTClient) -> Row:
    """What an event costs more when 100 clients listen."""

    async def publish() -> None:
        for number in range(EVENTS):
            await client.vms().update_vm("vm-0", change=VmChange(labels={"e": str(number)}))

    heard, all_heard = 0, trio.Event()

    async def listen(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        nonlocal heard
        async with await trio.open_tcp_stream("127.0.0.1", _port(agent)) as stream:
            await stream.send_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await stream.receive_some()
            task_status.started()
            async for data in stream:
                heard += data.count(b"\ndata: ")
                if heard >= EVENTS * LISTENERS:
                    all_heard.set()

    before = cpu(agent.pid)
    await publish()
    alone = cpu(agent.pid) - before
    async with trio.open_nursery() as nursery:
        for _ in range(LISTENERS):
            await nursery.start(listen)
        before = cpu(agent.pid)
        await publish()
        with trio.fail_after(10):
            await all_heard.wait()
        spent = (cpu(agent.pid) - before - alone) / EVENTS
        nursery.cancel_scope.cancel()
    return Row(name=f"an event to {LISTENERS} listeners: CPU in all", value=spent * 1e3, unit="ms", limit=10.0)


def _cpu_of(pid: int, work: Callable[[], object]) -> float:
    before = cpu(pid)
    work()
    return cpu(pid) - before


@contextmanager
def _plain_app(count: int) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "scripts.benchmarks._plain", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process.pid, int(process.stdout.readline() if process.stdout else "0")
        finally:
            process.kill()


# VMs, on real QEMU.


async def _machines(data_dir: Path, scratch: Path) -> list[Row]:
    ours, alone = scratch / "late-agent", scratch / "late-alone"
    program = [sys.executable, "-m", "scripts.benchmarks._late", str(ours)]
    with _lateness_alone(alone):
        async with _agent(data_dir, program=program) as agent, RESTClient(agent.url) as client:
            await client.import_image("tick", once(tick_disk()))
            rows = await _create_and_start(client, data_dir)
            rows += await _many(client, data_dir)
            rows += await parallel_lives(client, data_dir)
            ours.write_text("reset")
            alone.write_text("reset")
            await _with_a_hung_guest(client, data_dir)
            late, bare = float(ours.read_text()), float(alone.read_text())
    note = f"a bare trio loop beside it: {bare:.1f} ms"
    return [*rows, Row(name="loop late at worst, a guest stopped", value=late, unit="ms", limit=20.0, note=note)]


async def _create(client: RESTClient, name: str, *, start: bool = False) -> Vm:
    return await client.create_vm(name, "tick", memory=64, disk_size=1, cpu_cores=1, start=start)


async def _create_and_start(client: RESTClient, data_dir: Path) -> list[Row]:
    created = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        await _create(client, f"c-{number}")
        created.append(time.perf_counter() - begun)
    virsh = ["virsh", "-q", "-c", f"qemu+unix:///session?socket={data_dir}/hypervisor/r/libvirt/libvirt-sock"]
    by_api, by_virsh = [], []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        await client.start_vm(f"c-{number}")
        by_api.append(time.perf_counter() - begun)
        await client.stop_vm(f"c-{number}", force=True)
        begun = time.perf_counter()
        await trio.run_process([*virsh, "start", f"c-{number}"], capture_stdout=True)
        by_virsh.append(time.perf_counter() - begun)
        await client.stop_vm(f"c-{number}", force=True)
        await client.delete_vm(f"c-{number}")
    return [
        Row(name="create, not started: p50", value=statistics.median(created) * 1e3, unit="ms", limit=100.0),
        Row(
            name="start: p50", unit="ms", limit=1.15, note="baseline: virsh start of the same domain",
            value=statistics.median(by_api) * 1e3, baseline=statistics.median(by_virsh) * 1e3,
        ),
    ]  # fmt: skip


async def _many(client: RESTClient, data_dir: Path) -> list[Row]:
    async def live(name: str) -> None:
        await _create(client, name)
        await client.start_vm(name)
        await client.stop_vm(name, force=True)
        await client.delete_vm(name)

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(32):
            nursery.start_soon(live, f"many-{number}")
    taken = time.perf_counter() - begun
    left = len(await client.list_vms()) + len(list((data_dir / "vms").iterdir()))
    note = f"{taken:.1f} s for all"
    return [Row(name="left of 32 parallel lives on QEMU", value=left, unit="", limit=0.0, note=note)]


async def _with_a_hung_guest(client: RESTClient, data_dir: Path) -> None:
    await _create(client, "hung", start=True)
    pid = int((data_dir / "hypervisor/r/libvirt/qemu/run/hung.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        with trio.move_on_after(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.vms().vm_stats, "hung")
                while True:
                    await client.list_vms()
                    await trio.sleep(0.02)
    finally:
        os.kill(pid, signal.SIGCONT)
    await client.delete_vm("hung", force=True)


@contextmanager
def _lateness_alone(file: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-m", "scripts.benchmarks._late", str(file)]) as process:
        try:
            yield
        finally:
            process.kill()


# The process itself.


async def _process(data_dir: Path) -> list[Row]:
    agent = AgentProcess(data_dir, ["--api", "127.0.0.1:0"], {})
    try:
        first = await _timed(agent.start)
        spent = cpu(agent.pid)
        memory = rss(agent.pid)
        before = cpu(agent.pid)
        await trio.sleep(IDLE)
        idle = (cpu(agent.pid) - before) / IDLE * 100
        await agent.kill()
        again = await _timed(agent.start)
    finally:
        await agent.stop()
    return [
        Row(name="start to ready, a new node", value=first, unit="s", limit=3.0),
        Row(name="start to ready, a new node: CPU", value=spent, unit="s", limit=1.0),
        Row(name="start to ready, after kill -9", value=again, unit="s", limit=2.0),
        Row(name="memory of the agent, no P2P", value=memory, unit="MB", limit=95.0),
        Row(name="CPU of the idle agent", value=idle, unit="%", limit=0.5),
    ]


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


@asynccontextmanager
async def _agent(data_dir: Path, *options: str, program: list[str] | None = None) -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(data_dir, ["--api", "127.0.0.1:0", *options], {}, program=program)
    await agent.start()
    try:
        yield agent
    finally:
        await agent.stop()
