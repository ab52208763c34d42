"""Files into a guest and out of it by REST, in turn with the bare port and QEMU's guest agent."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import trio

from scripts.benchmarks._guest_ports import BARE, INTO, MIB, BarePort
from scripts.benchmarks.rows import Row
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

ROUNDS = 3
WITHIN = 300.0
WHAT = {"port": "bare port", "file": "bare port with a file", "least": "the least that verifies"}
NOTES = {
    "port": "`dd bs=64k`, /dev/null and /dev/zero",
    "file": "`dd bs=64k`, a file of the guest that nobody checks",
    "least": "a loop of Python with a file and its CRC-32",
}


async def copies(owner: AgentProcess, port: BarePort) -> list[Row]:
    """The median of some rounds, each of which has everything; as many bytes everywhere but by the guest agent."""
    content, rates = bytes(range(256)) * (BARE // 256), defaultdict[str, list[float]](list)
    async with RESTClient(owner.url) as client:
        with trio.fail_after(WITHIN):
            for _ in range(ROUNDS):
                for name in INTO:
                    rates[f"{name} in"].append(await port.into(name))
                    rates[f"{name} out"].append(await port.out(name))
                began = time.perf_counter()
                await client.write_file("one", "/root/copy", content)
                rates["copy in"].append(BARE / MIB / (time.perf_counter() - began))
                began = time.perf_counter()
                await client.read_file("one", "/root/copy")
                rates["copy out"].append(BARE / MIB / (time.perf_counter() - began))
                agent = await port.agent()
                rates["agent in"].append(agent.written)
                rates["agent out"].append(agent.read)
    rate = {name: statistics.median(found) for name, found in rates.items()}
    return [
        *(
            Row(name=f"{what}, {way} the guest", value=rate[f"{name} {short}"], unit="MiB/s",
                baseline=rate[f"copy {short}"], limit=2.0, note=f"{NOTES[name]}; baseline: a file by REST")
            for name, what in WHAT.items()
            for short, way in (("in", "into"), ("out", "out of"))
        ),
        *(
            Row(name=f"guest agent of QEMU, copy {short}", value=rate[f"agent {short}"], unit="MiB/s",
                baseline=rate[f"copy {short}"], limit=0.1)
            for short in ("in", "out")
        ),
    ]  # fmt: skip
