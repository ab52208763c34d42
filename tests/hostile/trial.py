"""Honest nodes and their users, and hostile members of each role beside them: what the honest ones notice.

`python -m tests.hostile.trial [--minutes N] [--attack NAME]` (by `scripts/hostile`) prints what was measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import msgspec
import trio

from tests.hostile.member import cpu_time, resident
from tests.hostile.party import GO, JOINED, Result, Task
from tests.nodes.fleet import agent_file, ask, fleet, online
from twinshare.agent.audit.chain import Broken
from twinshare.agent.audit.reading import newest, verify
from twinshare.agent.home import Home
from twinshare.agent.testing import AgentProcess
from twinshare.protocols.access import Role

HOSTILE = (Role.VIEWER, Role.VIEWER, Role.OPERATOR, Role.ADMIN)
QUIET = 20.0
"""Seconds for which honest calls are timed before anybody attacks, and again while the members only compute."""
MIB = 1 << 20


Times: TypeAlias = dict[str, list[float]]
"""Seconds that calls took, by what was asked."""


def no_times() -> Times:
    return defaultdict(list)


@dataclass
class Outcome:
    """Times in seconds, memory in bytes, `load` and `members_load` in cores. `wrong` says what should not have been.

    `quiet` is of before the attack. In `busy`, after it, the members compute as much as in the attack and send nothing:
    the difference between the two is what a machine does that attackers share with whom they attack.
    """

    quiet: Times = field(default_factory=no_times)
    attacked: Times = field(default_factory=no_times)
    busy: Times = field(default_factory=no_times)
    grown: int = 0
    load: float = 0.0
    members_load: float = 0.0
    results: list[Result] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def p99(times: Sequence[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)] if times else 0.0


def middle(times: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return sorted(times)[len(times) // 2] * 1e3 if times else 0.0


async def honest_calls(node: AgentProcess, seconds: float, times: Times, wrong: list[str]) -> None:
    """What users do all day, through one node, here and at its peer."""
    requests: list[tuple[str, str, str, Any]] = [
        ("reads of the node", "GET", "/api/vm", None),
        ("reads of the peer", "GET", "/api/remote/node-2/vm", None),
        ("changes", "PATCH", "/api/vm/honest", {"labels": {"by": "its owner"}}),
        ("reads of the peer", "GET", "/api/remote/node-2/vm/honest", None),
        ("reads of the node", "GET", "/api/p2p/peers", None),
    ]
    async with httpx.AsyncClient(base_url=node.url, timeout=60, trust_env=False) as http:
        with trio.move_on_after(seconds):
            while True:
                for what, verb, path, body in requests:
                    began = trio.current_time()
                    answer = await http.request(verb, path, json=body)
                    times[what].append(trio.current_time() - began)
                    if answer.status_code != 200:
                        wrong.append(f"{verb} {path}: {answer.status_code} {answer.text[:200]}")
                    await trio.sleep(0.02)


@asynccontextmanager
async def party(task: Task) -> AsyncIterator[trio.Process]:
    """A hostile member that has joined, and waits for a line before it attacks."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.hostile.party"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        await _stdin(process).send_all(msgspec.json.encode(task) + b"\n")
        with trio.fail_after(60):
            assert await _stdout(process).receive_some() == JOINED
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def attack(process: trio.Process, outcome: Outcome) -> None:
    await _stdin(process).send_all(GO)
    said = b""
    while not said.endswith(b"\n"):
        said += await _stdout(process).receive_some()
    outcome.results.append(msgspec.json.decode(said, type=Result))


async def keep_busy(processes: Sequence[trio.Process], cores: float) -> None:
    """Let the members compute for so much of the time together, and send nothing."""
    for process in processes:
        await _stdin(process).send_all(b"%f\n" % (cores / len(processes)))


def _stdin(process: trio.Process) -> trio.abc.SendStream:
    assert process.stdin is not None
    return process.stdin


def _stdout(process: trio.Process) -> trio.abc.ReceiveStream:
    assert process.stdout is not None
    return process.stdout


async def prepare(nodes: Sequence[AgentProcess]) -> None:
    for node in nodes:
        async with httpx.AsyncClient(base_url=node.url, timeout=60, trust_env=False) as http:
            await http.post("/api/image/import?name=blank", content=bytes(MIB), headers={
                "content-type": "application/octet-stream"})  # fmt: skip
        spec = {"name": "honest", "image": "blank", "memory": 64, "disk_size": 1, "cpu_cores": 1}
        await ask(node, "POST", "/api/vm", spec)


@asynccontextmanager
async def hostile_members(
    nodes: Sequence[AgentProcess], seconds: float, only: str
) -> AsyncIterator[Sequence[trio.Process]]:
    """Members of each role, which have joined the founder's fleet."""
    written = [agent_file(node) for node in nodes]
    ports = [int(address.split("/")[4]) for one in written for address in one["addresses"][:1]]
    async with AsyncExitStack() as stack:
        processes = []
        for number, role in enumerate(HOSTILE):
            ticket = (await ask(nodes[0], "POST", "/api/p2p/invite", {"role": str(role)}))["ticket"]
            task = Task(
                ticket=ticket, role=role, number=number + 10, targets=[one["peer_id"] for one in written], ports=ports,
                seconds=seconds, seed=number, only=only,
            )  # fmt: skip
            processes.append(await stack.enter_async_context(party(task)))
        yield processes


async def attacked(
    nodes: Sequence[AgentProcess], members: Sequence[trio.Process], seconds: float, outcome: Outcome
) -> None:
    """Let the members attack for so long while an honest user works."""
    agents, theirs = [agent_file(node)["pid"] for node in nodes], [member.pid for member in members]
    before, began = [resident(node) for node in nodes], trio.current_time()
    used, theirs_used = list(map(cpu_time, agents)), sum(map(cpu_time, theirs))
    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(attack, member, outcome)
        await honest_calls(nodes[0], seconds, outcome.attacked, outcome.wrong)
        elapsed = trio.current_time() - began
        outcome.load = max(cpu_time(pid) - then for pid, then in zip(agents, used, strict=True)) / elapsed
        outcome.members_load = (sum(map(cpu_time, theirs)) - theirs_used) / elapsed
    outcome.grown = max(resident(node) - then for node, then in zip(nodes, before, strict=True))


async def look_after(nodes: Sequence[AgentProcess], outcome: Outcome) -> None:
    """Nobody lost standing, nothing was erased, and the rogue admin can be put out at once."""
    founder, other = nodes
    for node, name in ((founder, "node-2"), (other, "node-1")):
        if name not in await online(node):
            outcome.wrong.append(f"{node.data_dir.name} no longer sees {name}")
        await ask(node, "POST", "/api/p2p/invite", {"role": "admin"})
        vms = {vm["name"]: vm for vm in (await ask(node, "GET", "/api/vm"))["vms"]}
        if "honest" not in vms or "owned" in vms["honest"]["labels"]:
            outcome.wrong.append(f"the honest VM of {node.data_dir.name} was changed or deleted")
        if not (await ask(node, "GET", "/api/image"))["images"]:
            outcome.wrong.append(f"the images of {node.data_dir.name} are gone")
        health = await ask(node, "GET", "/api/health")
        if health["status"] == "down":
            outcome.wrong.append(f"{node.data_dir.name}: {health}")
    await look_into_the_audit_log(founder, outcome)
    for result in outcome.results:
        await ask(founder, "DELETE", f"/api/p2p/peers/{result.peer_id}")
    with trio.move_on_after(60) as waiting:
        while await online(founder) != {"node-2"}:
            await trio.sleep(0.05)
    if waiting.cancelled_caught:
        outcome.wrong.append(f"a revoked member is still seen: {await online(founder)}")


async def look_into_the_audit_log(node: AgentProcess, outcome: Outcome) -> None:
    """It is whole, and holds what the node's own user did before the attack."""
    database = Home(node.data_dir).database
    await trio.sleep(1)  # rows are written together, within a second
    try:
        await trio.to_thread.run_sync(verify, database, agent_file(node)["peer_id"])
    except Broken as error:
        outcome.wrong.append(f"the audit log of {node.data_dir.name} is broken: {error}")
    rows = [entry for _, entry in await trio.to_thread.run_sync(newest, database, 1_000_000)]
    if not any((row.what, row.on, row.principal) == ("create_vm", "honest", "local") for row in rows):
        outcome.wrong.append("what the node's own user did is no longer in the audit log")


async def trial(folder: Path, seconds: float, quiet: float = QUIET, only: str = "") -> Outcome:
    """A fleet of two honest nodes for so long under attack, by one kind of attack alone with `only`."""
    outcome = Outcome()
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(fleet(folder, 2, peer_timeout=15.0))
        await prepare(nodes)
        await honest_calls(nodes[0], quiet, outcome.quiet, outcome.wrong)
        members = await stack.enter_async_context(hostile_members(nodes, seconds, only))
        await attacked(nodes, members, seconds, outcome)
        await keep_busy(members, outcome.members_load)
        await honest_calls(nodes[0], quiet, outcome.busy, outcome.wrong)
        await look_after(nodes, outcome)
    return outcome


def report(outcome: Outcome) -> str:
    sent = sum(sum(result.sent.values()) for result in outcome.results)
    refused = sum(sum(result.refused.values()) for result in outcome.results)
    lines = [
        f"hostile acts: {sent}, refused {refused}, from {len(outcome.results)} members",
        f"an agent under attack: {outcome.grown / MIB:+.1f} MiB, {outcome.load:.0%} of a core",
        f"the members: {outcome.members_load:.0%} of a core, and as much where they send nothing",
        *_rows({"quiet": outcome.quiet, "attacked": outcome.attacked, "nothing sent": outcome.busy}),
        *(outcome.wrong or ["nothing was lost"]),
    ]
    return "\n".join(lines)


def _rows(phases: Mapping[str, Times]) -> Iterator[str]:
    """Yield the median and p99 of each phase, in milliseconds, for all calls and for each kind."""
    yield f"{'median, p99 in ms':20}" + "".join(f"{name:>20}" for name in phases)
    for kind in ("", *sorted(set().union(*phases.values()))):
        cells = []
        for times in phases.values():
            taken = times.get(kind, []) if kind else [each for found in times.values() for each in found]
            cells.append(f"{middle(taken):.1f}, {p99(taken) * 1e3:.1f}")
        yield f"{kind or 'all calls':20}" + "".join(f"{cell:>20}" for cell in cells)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="scripts/hostile", description="Real nodes under attack by hostile members.")
    options.add_argument("--minutes", type=float, default=5.0, metavar="N", help="how long they are attacked")
    options.add_argument("--attack", default="", metavar="NAME", help="this attack alone")
    return options


if __name__ == "__main__":
    chosen = parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="ts-hostile-") as made:
        seen = trio.run(trial, Path(made), chosen.minutes * 60, QUIET, chosen.attack)
    print(report(seen))
    sys.exit(bool(seen.wrong))
