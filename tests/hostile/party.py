"""One hostile member, a process of its own: reads a `Task` as a line of JSON from stdin, joins, and says so.

Once another line comes it attacks, and prints a `Result`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys

import msgspec
import structlog
import trio

from tests.agent.p2p import test_mesh_libp2p
from tests.agent.p2p.test_mesh_libp2p import fresh, open_real
from tests.hostile.attacks import Attacker, attack
from twinshare.protocols.access import Role
from twinshare.protocols.errors import TwinshareError

JOINED = b"joined\n"


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


async def run(task: Task) -> Result:
    member = fresh(task.number)
    async with open_real(member):
        await member.call("join_fleet", ticket=task.ticket)
        attacker = Attacker(
            member=member, role=task.role, targets=task.targets,
            addresses=[("127.0.0.1", port) for port in task.ports], rng=random.Random(task.seed),
        )  # fmt: skip
        os.write(1, JOINED)
        await trio.to_thread.run_sync(sys.stdin.buffer.readline)
        with contextlib.suppress(TwinshareError):
            await attack(attacker, task.seconds, task.only)
        return Result(peer_id=member.peer_id, sent=dict(attacker.sent), refused=dict(attacker.refused))


if __name__ == "__main__":
    # It stands for another machine: what is measured is what it costs the agents, not who gets a core first.
    os.nice(19)
    logging.disable(logging.CRITICAL)
    test_mesh_libp2p.PEER_TIMEOUT = 15.0  # as nodes have it: four of these share the machine with whom they attack
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    print(msgspec.json.encode(trio.run(run, given)).decode(), flush=True)
