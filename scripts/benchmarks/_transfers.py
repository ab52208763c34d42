"""What is large between nodes: an image against scp, a tunnel against `ssh -L`, and a call while an image is pulled.

One connection carries all of it, as between two nodes. Loopback, with both ends on this machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import trio

from scripts.benchmarks._looks import cpu
from scripts.benchmarks._rpc_peer import child, server
from scripts.benchmarks._ssh import SSHD, Ssh, open_sshd
from scripts.benchmarks._transfer_peer import TUNNEL
from scripts.benchmarks.rows import Row, as_table
from tests.agent.p2p.workshop import ADMIN, TABLE
from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import quiet
from twinshare.agent.images.peer_pull import Source, pull_from_peers
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.p2p.calls import PeerCalls
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.host import Host, Stream
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.peer_session import PeerSession, open_peer_session
from twinshare.agent.reach.bulk_lines import open_bulk
from twinshare.agent.reach.tunnel import receive_frame
from twinshare.agent.streams import carry
from twinshare.protocols import blob
from twinshare.protocols.blob import BlobAnswer, BlobRequest
from twinshare.protocols.messages import Hello
from twinshare.protocols.reference import parse_reference
from twinshare.protocols.tunnel import encode

SIZE = int(os.environ.get("TWINSHARE_BENCH_TRANSFER", str(1 << 30)))
ROUNDS = 3
TUNNELLED = 256 << 20
ROUND_TRIPS = 2000
MEGABYTE = 1e6


async def measure() -> list[Row]:
    """Needs openssh and tar, and three times the size of the disk in the temporary folder."""
    place = os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - on a disk, which /tmp may not be
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinshare-bench-", dir=place)))
        disk = folder / "disk.raw"
        await trio.to_thread.run_sync(_make_disk, disk)
        ssh = await stack.enter_async_context(open_sshd(folder)) if SSHD else None
        port = int(await stack.enter_async_context(child("scripts.benchmarks._sockets", "serve")))
        far = await stack.enter_async_context(
            server(str(folder / "far"), str(disk), str(port), module="scripts.benchmarks._transfer_peer")
        )
        host = await stack.enter_async_context(open_libp2p_host(os.urandom(32), [], gate=admit_all))
        await host.connect(far["peer_id"], far["addresses"])
        line = await stack.enter_async_context(open_peer_session(host, far["peer_id"], Hello(name="bench"), 60.0))
        rows: list[Row] = []
        for work in (
            partial(_images, host, far, folder, ssh),
            partial(calls_during_pull, host, far, folder, line),
            partial(_tunnels, host, far, port, ssh),
        ):
            rows += await work()
            print(as_table(rows), file=sys.stderr, flush=True)
        return rows


def _make_disk(disk: Path) -> None:
    """Real files, one after another."""
    with (
        disk.open("wb") as target,
        subprocess.Popen(
            ["tar", "-cf", "-", "--ignore-failed-read", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as tar,
    ):
        while tar.stdout and target.tell() < SIZE and (data := tar.stdout.read(1 << 20)):
            target.write(data)
        tar.kill()


async def _images(host: Host, far: dict[str, Any], folder: Path, ssh: Ssh | None) -> list[Row]:
    ours: list[float] = []
    theirs: list[float] = []
    near_cpu = far_cpu = 0.0
    for _ in range(ROUNDS):
        before = cpu(os.getpid()), cpu(far["pid"])
        ours.append(await _pull(host, far, folder))
        near_cpu, far_cpu = cpu(os.getpid()) - before[0], cpu(far["pid"]) - before[1]
        if ssh:
            theirs.append(await _timed(partial(ssh.copy, folder / "disk.raw", folder / "copied")))
    rate = (folder / "disk.raw").stat().st_size / MEGABYTE / min(ours)
    return [
        Row(name="pull of an image of real files, to scp", value=min(ours), unit="s", limit=1 / 1.3,
            baseline=min(theirs) if theirs else None,
            note=f"{rate:.0f} MB/s; CPU {near_cpu:.1f} s here and {far_cpu:.1f} s there"),
    ]  # fmt: skip


async def _pull(host: Host, far: dict[str, Any], folder: Path) -> float:
    async def ask(request: BlobRequest) -> tuple[BlobAnswer, Stream]:
        stream = await host.open_stream(far["peer_id"], blob.PROTOCOL)
        await stream.send_all(encode(request))
        return await receive_frame(stream, BlobAnswer), stream

    source = Source("far", ask, partial(open_bulk, host.dial_socket, ask))
    request = ImportRequest(parse_reference("bench"), Origin("bench", raw=True), quiet)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        async with disk_store(Path(place) / "near") as store:
            return await _timed(partial(pull_from_peers, store, far["digest"], [source], request))


async def calls_during_pull(
    host: Host, far: dict[str, Any], folder: Path, line: PeerSession, *, seconds: float = inf, where: str = ""
) -> list[Row]:
    """The pull is given up after `seconds`; `where` ends the row's name."""

    async def session_to(_peer: str) -> PeerSession:
        return line

    calls = PeerCalls(session_to)
    taken: list[float] = []

    async def call_on(scope: trio.CancelScope, seconds: float) -> None:
        taken.clear()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and not scope.cancel_called:
            taken.append(await _timed(lambda: calls.call(line.peer_id, TABLE["echo"], {"text": "x" * 100}, ADMIN)))
            await trio.sleep(0.005)

    await call_on(trio.CancelScope(), 2.0)
    idle = statistics.median(taken) * 1e3
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_on, nursery.cancel_scope, 3600.0)
        with trio.move_on_after(seconds):
            await _pull(host, far, folder)
        nursery.cancel_scope.cancel()
    during = statistics.median(taken) * 1e3
    return [
        Row(name=f"a call while an image is pulled{where}, p50", value=during, unit="ms", limit=2 * idle + 20,
            note=f"idle {idle:.2f} ms; the longest {max(taken) * 1e3:.0f} ms of {len(taken)}"),
    ]  # fmt: skip


async def _tunnels(host: Host, far: dict[str, Any], port: int, ssh: Ssh | None) -> list[Row]:
    ways: dict[str, int] = {"plain": port}
    taken: dict[str, list[float]] = {"plain": [], "ours": [], "ssh": []}
    trips: dict[str, list[float]] = {"plain": [], "ours": [], "ssh": []}
    async with AsyncExitStack() as stack:
        ways["ours"] = await stack.enter_async_context(_tunnel(host, far["peer_id"]))
        if ssh:
            ways["ssh"] = await stack.enter_async_context(ssh.forwarded(port))
        for _ in range(ROUNDS):
            for name, way in ways.items():
                taken[name].append(await _driven("send", way, TUNNELLED))
                trips[name].append(await _driven("echo", way, ROUND_TRIPS) * 1e3)
    versus = trips["ssh"] or trips["plain"]
    best = {name: min(values) for name, values in taken.items() if values}
    trip = {name: min(values) for name, values in trips.items() if values}
    return [
        Row(name="a tunnel through a peer, to ssh -L", unit="s", limit=1.0,
            value=best["ours"], baseline=best.get("ssh"),
            note=f"{TUNNELLED / MEGABYTE / best['ours']:.0f} MB/s; without a tunnel {best['plain']:.2f} s"),
        Row(name="its round trip, beyond that of ssh -L", value=trip["ours"] - min(versus), unit="ms", limit=0.5,
            note=f"{trip['ours']:.2f} ms; ssh {trip.get('ssh', 0):.2f}, without {trip['plain']:.2f} ms"),
    ]  # fmt: skip


@asynccontextmanager
async def _tunnel(host: Host, peer_id: str) -> AsyncIterator[int]:
    """A local port that leads to the far end's."""

    async def handle(near: trio.SocketStream) -> None:
        async with near, await _open(host, peer_id) as far:
            await carry(near, far)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def _open(host: Host, peer_id: str) -> Stream:
    return await host.open_stream(peer_id, TUNNEL)


async def _driven(what: str, port: int, count: int) -> float:
    command = [sys.executable, "-m", "scripts.benchmarks._sockets", what, str(port), str(count)]
    return float((await trio.run_process(command, capture_stdout=True)).stdout)


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun
