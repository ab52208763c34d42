"""Real nodes of one fleet on this machine, each a process of its own with a real libp2p host."""

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from twinshare.agent.testing import AgentProcess
from twinshare.protocols.access import Role

PEER_TIMEOUT = 2.0


async def start(
    data_dir: Path,
    *options: str,
    hypervisor: str | None = None,
    listen: str = "/ip4/127.0.0.1/tcp/0",
    inside: Sequence[str] = (),
    peer_timeout: float = PEER_TIMEOUT,
    mdns: bool = False,
) -> AgentProcess:
    """A node on free ports, with peers; it is named after its folder. `inside` runs it in a network namespace."""
    given = ["--api", "127.0.0.1:0", "--listen", listen, "--name", data_dir.name, *options]
    given += ["--hypervisor", hypervisor] if hypervisor else []
    environment = {
        "TWINSHARE_P2P_ENABLED": "true",
        "TWINSHARE_P2P_DEAD_PEER_TIMEOUT": str(peer_timeout),
        "TWINSHARE_P2P_MDNS": str(mdns).lower(),
    }
    program = [*inside, sys.executable, "-m", "twinshare", "agent"] if inside else None
    agent = AgentProcess(data_dir, given, environment, program=program)
    await agent.start()
    return agent


async def ask(node: AgentProcess, verb: str, path: str, body: Any = None, *, status: int = 200) -> Any:
    """One request to a node's REST, as curl makes it."""
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as http:
        answer = await http.request(verb, path, json=body) if body is not None else await http.request(verb, path)
    assert answer.status_code == status, (path, answer.status_code, answer.text)
    return answer.json()


async def join(joiner: AgentProcess, inviter: AgentProcess, role: Role = Role.ADMIN) -> None:
    ticket = await ask(inviter, "POST", "/api/p2p/invite", {"role": str(role)})
    await ask(joiner, "POST", "/api/p2p/join", {"ticket": ticket["ticket"]})


async def online(node: AgentProcess) -> set[str]:
    """The names of the peers that a node sees online."""
    return {peer["name"] for peer in (await ask(node, "GET", "/api/p2p/peers"))["peers"] if peer["status"] == "online"}


async def until_online(node: AgentProcess, *names: str, within: float = 20) -> None:
    with trio.fail_after(within):
        while await online(node) != set(names):
            await trio.sleep(0.05)


@asynccontextmanager
async def fleet(
    folder: Path, count: int, *, hypervisor: str | None = "fake://", **more: Any
) -> AsyncIterator[list[AgentProcess]]:
    """So many nodes that see each other, named node-1 and so on; `more` is for `start`."""
    nodes: list[AgentProcess] = []
    async with AsyncExitStack() as stack:

        async def stop(node: AgentProcess) -> None:
            with trio.CancelScope(shield=True):
                await node.stop()

        for number in range(1, count + 1):
            nodes.append(await start(folder / f"node-{number}", hypervisor=hypervisor, **more))
            stack.push_async_callback(stop, nodes[-1])
            if number > 1:
                await join(nodes[-1], nodes[0])
        names = {node.data_dir.name for node in nodes}
        for node in nodes:
            await until_online(node, *(names - {node.data_dir.name}))
        yield nodes


def agent_file(node: AgentProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.data_dir / "agent.json").read_text())
    return found
