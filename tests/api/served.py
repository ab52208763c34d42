"""A node on the in-memory hypervisor, served on a real socket, for tests of the REST API."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig, ImagesConfig, NodeConfig, P2pConfig
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.node import Node
from twinshare.agent.open_node import open_node
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.api.server import open_api
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods

SPEC = {"name": "one", "image": "disk", "cpu_cores": 1, "memory": 64, "disk_size": 1}
DEADLINE = 10.0
TABLE = all_methods(SERVICES)


@dataclass(frozen=True)
class Served:
    """A node that answers at `url`, and a client of it."""

    node: Node
    url: str
    client: httpx.AsyncClient

    @property
    def address(self) -> tuple[str, int]:
        parsed = httpx.URL(self.url)
        return parsed.host, parsed.port or 0

    def raw(self, data: bytes) -> bytes:
        """Everything the server says to `data` until it closes, or falls silent (blocking: call it in a thread)."""
        return talk(self.address, data)

    async def get(self, path: str, **more: Any) -> Any:
        answer = await self.client.get(path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()


def talk(address: tuple[str, int], data: bytes, silence: float = 1.0) -> bytes:
    """Send `data` and return the answer until the other side closes or is silent for `silence` seconds."""
    heard = b""
    with socket.create_connection(address, timeout=DEADLINE) as sock:
        sock.sendall(data)
        sock.settimeout(silence)
        try:
            while part := sock.recv(65536):
                heard += part
        except (TimeoutError, ConnectionResetError):
            pass
    return heard


def config(data_dir: Path, name: str = "here", guests: str = "", **api: Any) -> Config:
    """`guests` is the query of the hypervisor's URI: how its guests behave."""
    return Config(
        node=NodeConfig(name=name, data_dir=str(data_dir)),
        api=ApiConfig(**({"listen": "127.0.0.1:0"} | api)),
        hypervisor=HypervisorConfig(uri=f"fake://{data_dir}/fake.json{guests}", stop_timeout=1),
        images=ImagesConfig(default="disk"),
        p2p=P2pConfig(enabled=False),
    )


@asynccontextmanager
async def _opened(made: Config, network: MemoryNetwork | None) -> AsyncIterator[Node]:
    """A node with the image `disk`, alone or on a network in memory."""
    host = partial(open_memory_host, network, peer_timeout=2.0) if network else None
    p2p = P2pConfig(enabled=network is not None, dead_peer_timeout=2.0)
    async with open_node(msgspec.structs.replace(made, p2p=p2p), host) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        yield node


@asynccontextmanager
async def served(
    data_dir: Path, network: MemoryNetwork | None = None, name: str = "here", **api: Any
) -> AsyncIterator[Served]:
    """A node with the image `disk`, and its REST API; `api` are keys of its section of the configuration."""
    async with (
        _opened(config(data_dir, name, **api), network) as node,
        open_api(node) as url,
        httpx.AsyncClient(base_url=url, timeout=DEADLINE, trust_env=False, verify=False) as client,  # noqa: S501 - a certificate of a test
    ):
        yield Served(node, url, client)


@asynccontextmanager
async def served_in_a_fleet(
    folder: Path, network: MemoryNetwork | None = None, guests: str = ""
) -> AsyncIterator[tuple[Served, Node]]:
    """The same, with a peer that is called `far` and has let it in."""
    network = network or MemoryNetwork()
    async with (
        _opened(config(folder / "far", "far", guests), network) as far,
        served(folder / "here", network, guests=guests) as api,
    ):
        invite = InviteRequest(role=Role.ADMIN)
        ticket = await far.call(LOCAL_ADMIN, TABLE["invite_peer"], {"invite": invite})
        await api.node.call(LOCAL_ADMIN, TABLE["join_fleet"], {"ticket": ticket.ticket})
        yield api, far
