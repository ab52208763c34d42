"""A member of a real agent's fleet, played by this process over real libp2p: it sends what a test makes it send."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.agent.p2p.hosts import until
from tests.agent.p2p.raw import raw_call
from tests.agent.p2p.test_mesh_libp2p import fresh, open_real
from tests.nodes.fleet import agent_file, ask
from twinshare.agent.simulation import SimulatedNode
from twinshare.agent.testing import AgentProcess
from twinshare.protocols.access import Role


@asynccontextmanager
async def open_member(agent: AgentProcess, role: Role, number: int = 0) -> AsyncIterator[SimulatedNode]:
    """Join the agent's fleet with a role of its choice, and stay until the end of the block."""
    member = fresh(number)
    async with open_real(member):
        ticket = await ask(agent, "POST", "/api/p2p/invite", {"role": str(role)})
        await member.call("join_fleet", ticket=ticket["ticket"])
        await until(lambda: agent_file(agent)["peer_id"] in member.online)
        yield member


async def send(member: SimulatedNode, agent: AgentProcess, method: str, packed: bytes) -> bytes:
    """Make a call with arguments as they are. Raises: what the agent answers."""
    return await raw_call(member, agent_file(agent)["peer_id"], method, packed)


def resident(agent: AgentProcess) -> int:
    """Bytes of memory that the agent's process holds."""
    status = Path(f"/proc/{agent_file(agent)['pid']}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def cpu_time(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
