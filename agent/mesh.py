"""The node in its fleet: the mesh of `p2p`, opened as the configuration says, on libp2p."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import structlog

from ..protocols.access import Limits, Witness
from ..protocols.errors import P2pStopped
from ..protocols.table import Dispatcher
from .config import Config, PeerConfig
from .events import EventLog
from .identity import Identity
from .p2p.context import Serve
from .p2p.host import Gate, Host, PeerId
from .p2p.libp2p import open_discovery, open_libp2p_host
from .p2p.libp2p.settings import HostSettings
from .p2p.membership import Override
from .p2p.mesh import Mesh, open_mesh
from .p2p.signing import Signer
from .p2p.store import DatabaseKeyValueStore
from .state import State

log = structlog.get_logger(__name__)


HostFactory: TypeAlias = Callable[[PeerId, Gate], AbstractAsyncContextManager[Host]]
"""Opens the host of the node with this ID: another network than libp2p's, for tests."""


@asynccontextmanager
async def open_node_mesh(
    config: Config,
    identity: Identity,
    name: str,
    version: str,
    dispatcher: Dispatcher,
    state: State,
    events: EventLog,
    served: Mapping[str, Serve],
    witness: Witness,
    other_network: HostFactory | None = None,
) -> AsyncIterator[Mesh]:
    """The mesh, switched on if `p2p.enabled` says so and its addresses are free.

    A node that cannot listen runs all the same, alone: `POST /api/p2p/start` tries again.
    """

    @asynccontextmanager
    async def open_host(gate: Gate) -> AsyncIterator[Host]:
        settings = HostSettings(peer_timeout=config.p2p.dead_peer_timeout, relay=config.p2p.relay)
        async with AsyncExitStack() as stack:
            try:
                opening = open_libp2p_host(identity.seed, config.p2p.listen, gate=gate, settings=settings)
                host = await stack.enter_async_context(opening)
            except (OSError, ValueError) as error:
                raise P2pStopped(f"P2P cannot listen on {', '.join(config.p2p.listen)}: {error}") from None
            yield host

    signer = Signer(identity.seed)
    discover = partial(open_discovery, signer=signer, now=time.time, mdns=config.p2p.mdns, dht=config.p2p.dht)

    def publish(type: str, data: Mapping[str, Any]) -> None:
        events.publish(type, data)

    async with open_mesh(
        open_host=partial(other_network, identity.peer_id) if other_network else open_host,
        open_discovery=discover,
        signer=signer,
        name=name,
        agent=f"twinshare/{version}",
        dispatcher=dispatcher,
        store=DatabaseKeyValueStore(state),
        events=events.subscribe,
        publish=publish,
        now=time.time,
        overrides={peer: _override(said) for peer, said in config.peers.items()},
        bootstrap=config.p2p.bootstrap,
        peer_timeout=config.p2p.dead_peer_timeout,
        served=served,
        witness=witness,
        start=False,
    ) as mesh:
        if config.p2p.enabled:
            try:
                await mesh.start()
            except P2pStopped as error:
                log.warning("alone for now", error=error.message)
        yield mesh


def _override(said: PeerConfig) -> Override:
    limits = Limits(vms=said.max_vms, cpu=said.max_cpu, memory=said.max_memory, disk=said.max_disk)
    return Override(deny=said.deny, role=said.role, limits=limits)
