"""A call while an image is pulled over a slow line: between two network namespaces, with token buckets.

A call that fails, or a peer that is taken for dead, ends the benchmark with its error.

python -m scripts.benchmarks._slow_lines MBIT       in a network namespace of its own: prints the rows, as JSON
python -m scripts.benchmarks._slow_lines far ...    the far node, in another one
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import msgspec
import trio

from scripts.benchmarks._rpc_peer import log_to_stderr, server
from scripts.benchmarks._transfers import calls_during_pull
from scripts.benchmarks.rows import Row
from twinshare.agent.heap import use_one_heap
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.peer_session import open_peer_session
from twinshare.protocols.messages import Hello

MODULE = "scripts.benchmarks._slow_lines"
MBITS = (1, 10)
BUCKET = "tbf rate {mbit}mbit burst 3000 latency 400ms"
NEAR, FAR = "10.98.0.1", "10.98.0.2"
SECONDS = 20.0
SIZE = 64 << 20
"""Bytes of a disk that cannot be compressed: more than the lines carry in that time."""


async def measure() -> list[Row]:
    """Needs iproute2 and network namespaces for users."""
    rows: list[Row] = []
    for mbit in MBITS:
        command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", MODULE, str(mbit)]
        done = await trio.run_process(command, capture_stdout=True)
        rows += msgspec.json.decode(done.stdout, type=list[Row])
    return rows


async def _measure_here(mbit: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinshare-bench-")))
        disk = folder / "disk.raw"
        disk.write_bytes(os.urandom(SIZE))
        far = await stack.enter_async_context(
            server("far", str(folder / "far"), str(disk), "0", "/ip4/0.0.0.0/tcp/0", module=MODULE)
        )
        _lay_line(mbit, far["pid"])
        port = far["addresses"][0].split("/")[4]
        host = await stack.enter_async_context(open_libp2p_host(os.urandom(32), [], gate=admit_all))
        await host.connect(far["peer_id"], [f"/ip4/{FAR}/tcp/{port}"])
        line = await stack.enter_async_context(open_peer_session(host, far["peer_id"], Hello(name="bench"), 15.0))
        where = f" at {mbit} Mbit/s"
        rows = await calls_during_pull(host, far, folder, line, seconds=SECONDS, where=where)
    print(msgspec.json.encode(rows).decode())


def _lay_line(mbit: int, pid: int) -> None:
    """Join this namespace with that of a process by a line whose directions have a token bucket each."""
    inside = f"nsenter --target {pid} --net "
    for command in (
        f"ip link add near type veth peer name far netns {pid}",
        f"ip address add {NEAR}/24 dev near",
        inside + f"ip address add {FAR}/24 dev far",
        "ip link set near up",
        inside + "ip link set far up",
        f"tc qdisc add dev near root {BUCKET.format(mbit=mbit)}",
        inside + f"tc qdisc add dev far root {BUCKET.format(mbit=mbit)}",
    ):
        subprocess.run(command.split(), check=True)


def _run_far(arguments: list[str]) -> NoReturn:
    """Become the far node, in a namespace of its own."""
    peer = [sys.executable, "-m", "scripts.benchmarks._transfer_peer", *arguments]
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *peer]
    os.execvp(command[0], command)  # noqa: S606 - a fixed command


if __name__ == "__main__":
    if sys.argv[1] == "far":
        _run_far(sys.argv[2:])
    log_to_stderr()
    use_one_heap()
    trio.run(_measure_here, int(sys.argv[1]))
