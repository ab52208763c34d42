"""The node in its fleet: the mesh of `p2p`, opened as the configuration says, on libp2p."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import structlog

from ..protocols.access import AuditSink, Limits
from ..protocols.errors import P2pStopped
from .config import Config, P2pConfig, PeerConfig
from .events import EventLog
from .identity import Identity
from .p2p.context import Served
from .p2p.host import Gate, Host, PeerId
from .p2p.libp2p import open_discovery, open_libp2p_host
from .p2p.libp2p.settings import HostSettings
from .p2p.membership_view import Override
from .p2p.mesh import Mesh, MeshSettings, make_mesh_client, open_mesh
from .p2p.mesh_client import MeshClient
from .p2p.signing import Signer
from .p2p.store import DatabaseKeyValueStore
from .state import State

log = structlog.get_logger(__name__)


HostFactory: TypeAlias = Callable[[PeerId, Gate], AbstractAsyncContextManager[Host]]
"""Opens the host of the node with this ID: another network than libp2p's, for tests."""


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What a node's mesh is made of. Peers are met on `other_network`, if one is given, in place of libp2p."""

    config: Config
    identity: Identity
    name: str
    version: str
    state: State
    events: EventLog
    audit_sink: AuditSink
    other_network: HostFactory | None = None


async def make_node_mesh_client(parts: NodeParts) -> MeshClient:
    """The client of the node's mesh, as it is configured."""
    config, identity = parts.config.p2p, parts.identity
    signer = Signer(identity.seed)
    other = parts.other_network
    return await make_mesh_client(
        MeshSettings(
            open_host=partial(other, identity.peer_id) if other else partial(_open_host, identity, config),
            open_discovery=partial(open_discovery, now=time.time, mdns=config.mdns, dht=config.dht),
            signer=signer,
            name=parts.name,
            agent=f"twinshare/{parts.version}",
            store=DatabaseKeyValueStore(parts.state),
            events=parts.events.subscribe,
            publish=parts.events.publish,
            now=time.time,
            overrides={peer: _override(said) for peer, said in parts.config.peers.items()},
            bootstrap=config.bootstrap,
            peer_timeout=config.dead_peer_timeout,
            audit_sink=parts.audit_sink,
        )
    )


@asynccontextmanager
async def open_node_mesh(client: MeshClient, served: Served, *, start: bool) -> AsyncIterator[Mesh]:
    """The mesh, switched on if `start` says so and its addresses are free.

    A node that cannot listen runs all the same, alone: `POST /api/p2p/start` tries again.
    """
    async with open_mesh(client, served) as mesh:
        if start:
            try:
                await mesh.start()
            except P2pStopped as error:
                log.warning("alone for now", error=error.message)
        else:
            client.switched(None)
        yield mesh


@asynccontextmanager
async def _open_host(identity: Identity, config: P2pConfig, gate: Gate) -> AsyncIterator[Host]:
    settings = HostSettings(peer_timeout=config.dead_peer_timeout, relay=config.relay)
    async with AsyncExitStack() as stack:
        try:
            opening = open_libp2p_host(identity.seed, config.listen, gate=gate, settings=settings)
            host = await stack.enter_async_context(opening)
        except (OSError, ValueError) as error:
            raise P2pStopped(f"P2P cannot listen on {', '.join(config.listen)}: {error}") from None
        yield host


def _override(said: PeerConfig) -> Override:
    limits = Limits(vms=said.max_vms, cpu=said.max_cpu, memory=said.max_memory, disk=said.max_disk)
    return Override(deny=said.deny, role=said.role, limits=limits)
