"""The composition root: opens the parts of a node from the bottom up, and ends them in the other order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from .. import __version__
from ..protocols.access import LOCAL_ADMIN, Caller
from ..protocols.blob import PROTOCOL as BLOB
from ..protocols.console import PROTOCOL as CONSOLE
from ..protocols.console import SCREEN_PROTOCOL as SCREEN
from ..protocols.guest_service import GuestService
from ..protocols.guest_stream import PROTOCOL as GUEST
from ..protocols.image_service import ImageService
from ..protocols.services import NodeService, OperationService, TokenService, VmService
from ..protocols.table import Dispatcher, method_of
from ..protocols.tunnel import PROTOCOL as TUNNEL
from .audit.log import SCHEMA as AUDIT_SCHEMA
from .audit.log import open_audit
from .backends import Backends, open_backends
from .config import Config, default_data_dir
from .disk_reserve import DiskReserve
from .dns import serve_names
from .events import open_events
from .foundation import Foundation
from .guest.access import GuestAccess
from .guest.guests import Guests, open_guests
from .guest.operations import GuestOperations
from .health import NodeHealth
from .home import locked_home
from .identity import load_identity
from .image_operations.context import ImageContext
from .image_operations.reads import ImageReads
from .journal.journal import Journal, open_journal
from .journal.store import JournalStore
from .loopback import SCHEMA as LOOPBACK_SCHEMA
from .loopback import LoopbackAddresses, open_loopback_addresses
from .mesh import HostFactory, NodeParts, make_node_mesh_client, open_node_mesh
from .node import Node, node_name
from .node_services import LocalNode, LocalOperations, LocalTokens
from .operations import open_operations
from .p2p.context import Serve, Served
from .p2p.mesh_client import MeshClient
from .p2p.store import SCHEMA as MESH_SCHEMA
from .p2p.store import DatabaseKeyValueStore
from .reach.addresses import PeerAddresses
from .reach.consoles import Consoles, open_consoles
from .reach.fleet_images import BlobServer, FleetImages
from .reach.remote_console import ConsoleServer
from .reach.remote_guest import GuestStreamServer
from .reach.screens import Screens
from .reach.tunnel import TunnelServer
from .reach.tunnels import Tunnels
from .reach.vm_places import VmPlaces
from .reach.vm_streams import VmStreams
from .relays import open_relays
from .ssh_key import ensure_ssh_key
from .state import open_state
from .tokens import TokenStore, open_tokens
from .vm.addresses import GuestAddresses
from .vm.admission import Admission, read_host
from .vm.context import VmContext
from .vm.expirer import Expirer
from .vm.files import VmFiles
from .vm.forwards import Forwards
from .vm.host_ports import HostPorts
from .vm.image_resolver import ImageResolver
from .vm.inventory import Inventory, open_inventory
from .vm.reads import VmReads
from .vm.watch import Watch, start_after_boot


@asynccontextmanager
async def open_node(config: Config, other_network: HostFactory | None = None) -> AsyncIterator[Node]:
    """A running node. Its VMs outlive it. Peers are met on `other_network`, if one is given, in place of libp2p.

    Raises: HomeError, IdentityError when the data directory cannot be used.
    """
    path = Path(config.node.data_dir) if config.node.data_dir else default_data_dir()
    with locked_home(path.expanduser().absolute()) as home:
        reserve = DiskReserve(home.path)
        await trio.to_thread.run_sync(reserve.open)
        identity = load_identity(home.identity_key)
        async with (
            open_state(home.database, [MESH_SCHEMA, AUDIT_SCHEMA, LOOPBACK_SCHEMA]) as state,
            open_events(state) as events,
            open_audit(state, identity.seed) as audit,
            open_backends(home.path, config) as backends,
        ):
            base = Foundation(config, home, identity, state, events, audit, backends, reserve)
            parts = NodeParts(
                config, identity, node_name(config), __version__, state, events, audit.record, other_network
            )
            async with _open_parts(base, await make_node_mesh_client(parts)) as node:
                yield node


@asynccontextmanager
async def _open_parts(base: Foundation, peers: MeshClient) -> AsyncIterator[Node]:
    """The parts of a node in the order in which they need each other; what was under way goes on before it serves."""
    config, backends, events, audit = base.config, base.backends, base.events, base.audit
    name = node_name(config)
    async with (
        open_inventory(backends.hypervisor, events, name, config.hypervisor.resync_interval) as inventory,
        open_relays() as relays,
    ):
        loopback = await open_loopback_addresses(base.state, relays, backends.admits, base.identity.peer_id)
        ports = HostPorts(inventory)
        forwards = Forwards(backends.hypervisor, inventory, relays, ports, backends.admits)
        vms = _vm_context(base, inventory, forwards, loopback, peers)
        images = ImageContext(backends.images, backends.exchange, events, vms, backends.scratch)
        tunnels = Tunnels(relays, ports, DatabaseKeyValueStore(base.state), peers)
        screens = Screens(vms, audit.record)
        tokens = await open_tokens(base.state, base.home.ensure_admin_token())
        health = NodeHealth(name, __version__, config.p2p.enabled, vms, peers, base.problems)
        kinds = open_operations(vms, images, tunnels)
        async with (
            open_journal(
                JournalStore(base.state, base.reserve, base.identity.seed), events, name, audit.operation_ended, kinds
            ) as operations,
            trio.open_nursery() as nursery,
            open_consoles(vms, audit.record) as consoles,
            open_guests(vms, base.home.path / "sessions") as guests,
        ):
            nursery.start_soon(Watch(vms, events, base.home.path).run)
            nursery.start_soon(base.reserve.tend)
            await operations.recover()
            access = GuestAccess(vms, guests, audit.record)
            dispatcher = Dispatcher(_services(vms, guests, images, operations, tokens, health), operations)
            nursery.start_soon(start_after_boot, vms, partial(_start, dispatcher), base.state)
            nursery.start_soon(Expirer(vms, events, partial(_delete, dispatcher)).run)
            nursery.start_soon(_flush_tokens, tokens)
            served = _served_streams(vms, backends, consoles, screens, access, peers)
            async with open_node_mesh(peers, Served(dispatcher, served), start=config.p2p.enabled) as mesh:
                await tunnels.open_kept()
                nursery.start_soon(tunnels.tend)
                nursery.start_soon(tunnels.end_with_principals, tokens.holds)
                nursery.start_soon(peers.context.tickets.end_with_principals, tokens.holds)
                places = VmPlaces(mesh, name, inventory)
                streams = VmStreams(places, peers, audit.record, consoles, screens, access)
                node = Node(
                    config=config, home=base.home, name=name, peer_id=base.identity.peer_id, version=__version__,
                    events=events, audit=audit, operations=operations, tokens=tokens, backends=backends, vms=vms,
                    images=images, mesh=mesh, tunnels=tunnels, consoles=consoles, screens=screens, streams=streams,
                    peer_addresses=PeerAddresses(loopback, peers), places=places, health=health,
                )  # fmt: skip
                if config.dns.listen:
                    await nursery.start(serve_names, config.dns.listen, node.address_of)
                yield node
                with trio.CancelScope(shield=True):
                    await operations.close()
            await tokens.flush()
            nursery.cancel_scope.cancel()


def _vm_context(
    base: Foundation, inventory: Inventory, forwards: Forwards, loopback: LoopbackAddresses, peers: MeshClient
) -> VmContext:
    backends = base.backends
    return VmContext(
        hypervisor=backends.hypervisor,
        images=backends.images,
        resolver=ImageResolver(backends.images, backends.exchange, FleetImages(backends.images, peers), base.events),
        inventory=inventory,
        forwards=forwards,
        addresses=GuestAddresses(backends.hypervisor, inventory, forwards, loopback),
        admission=Admission(base.config.hypervisor, partial(read_host, base.home.path)),
        files=VmFiles(backends.vms, backends.chown),
        limits=base.config.hypervisor,
        node_key=partial(_node_key, base.config, base.home.path),
    )


def _served_streams(
    vms: VmContext,
    backends: Backends,
    consoles: Consoles,
    screens: Screens,
    guests: GuestAccess,
    peers: MeshClient,
) -> dict[str, Serve]:
    """What peers may open, by its protocol."""
    return {
        TUNNEL: TunnelServer(vms).serve,
        CONSOLE: ConsoleServer(consoles.attach).serve,
        SCREEN: ConsoleServer(screens.attach).serve,
        GUEST: GuestStreamServer(guests).serve,
        BLOB: BlobServer(backends.images, peers.expect_socket).serve,
    }


def _services(
    vms: VmContext, guests: Guests, images: ImageContext, operations: Journal, tokens: TokenStore, health: NodeHealth
) -> dict[type, Callable[[Caller], Any]]:
    """What binds the reads of each service of this node to a caller; the mesh adds its own."""
    return {
        VmService: partial(VmReads, vms),
        GuestService: partial(GuestOperations, vms, guests),
        ImageService: partial(ImageReads, images),
        OperationService: partial(LocalOperations, operations),
        NodeService: partial(LocalNode, health),
        TokenService: lambda caller: LocalTokens(tokens),
    }


def _node_key(config: Config, data_dir: Path) -> str:
    return ensure_ssh_key(data_dir, f"twinshare node {node_name(config)}") if config.guests.ssh_key else ""


async def _start(dispatcher: Dispatcher, vm: str) -> None:
    await dispatcher.call(LOCAL_ADMIN, method_of(VmService.start_vm), {"vm": vm})


async def _delete(dispatcher: Dispatcher, vm: str) -> None:
    await dispatcher.call(LOCAL_ADMIN, method_of(VmService.delete_vm), {"vm": vm, "delete_disk": True, "force": True})


async def _flush_tokens(tokens: TokenStore) -> None:
    while True:
        await trio.sleep(30)
        await tokens.flush()
