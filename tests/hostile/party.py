"""One hostile member, a process of its own: reads a `Task` as a line of JSON from stdin, joins, and says so.

After the line `GO` it attacks, and prints a `Result` as a line. After another, a number, it computes for that part of
the time and sends nothing, until it is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import time

import msgspec
import structlog
import trio

from tests.agent.p2p import test_mesh_libp2p
from tests.agent.p2p.test_mesh_libp2p import fresh, open_real
from tests.hostile.attacks import Attacker, attack
from twinshare.protocols.access import Role
from twinshare.protocols.errors import TwinshareError

JOINED, GO = b"joined\n", b"go\n"
BUSY_FOR = 0.01
"""Seconds of CPU time that are used in one piece."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """`targets` are the honest nodes' peer IDs, the founder's first; `ports` those at which they listen for peers."""

    ticket: str
    role: Role
    number: int
    targets: list[str]
    ports: list[int]
    seconds: float
    seed: int
    only: str = ""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How often each attack was sent, and how often it was refused."""

    peer_id: str
    sent: dict[str, int]
    refused: dict[str, int]


async def run(task: Task) -> None:
    member = fresh(task.number)
    async with open_real(member):
        await member.call("join_fleet", ticket=task.ticket)
        attacker = Attacker(
            member=member, role=task.role, targets=task.targets,
            addresses=[("127.0.0.1", port) for port in task.ports], rng=random.Random(task.seed),
        )  # fmt: skip
        os.write(1, JOINED)
        assert await read_line() == GO
        with contextlib.suppress(TwinshareError):
            await attack(attacker, task.seconds, task.only)
        result = Result(peer_id=member.peer_id, sent=dict(attacker.sent), refused=dict(attacker.refused))
        os.write(1, msgspec.json.encode(result) + b"\n")
        await compute(float(await read_line()))


async def read_line() -> bytes:
    return await trio.to_thread.run_sync(sys.stdin.buffer.readline)


async def compute(part: float) -> None:
    """Use a core for this part of the time, and never return."""
    while True:
        began, used = time.monotonic(), time.process_time()
        while time.process_time() - used < BUSY_FOR:
            pass
        await trio.sleep(max(0.0, BUSY_FOR / max(part, 0.001) - (time.monotonic() - began)))


if __name__ == "__main__":
    # It stands for another machine: what is measured is what it costs the agents, not who gets a core first.
    os.nice(19)
    logging.disable(logging.CRITICAL)
    test_mesh_libp2p.PEER_TIMEOUT = 15.0  # as nodes have it: four of these share the machine with whom they attack
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    trio.run(run, given)
