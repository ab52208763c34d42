"""One node: the composition root. Everything that runs on a machine is joined here, from the bottom up."""

from __future__ import annotations

import platform
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from .. import __version__
from ..protocols.access import LOCAL_ADMIN, Caller
from ..protocols.blob import PROTOCOL as BLOB
from ..protocols.console import PROTOCOL as CONSOLE
from ..protocols.console import SCREEN_PROTOCOL as SCREEN
from ..protocols.errors import TwinshareError
from ..protocols.guest_service import GuestService
from ..protocols.guest_stream import PROTOCOL as GUEST
from ..protocols.guest_stream import StreamRequest
from ..protocols.image import Image
from ..protocols.method import Method
from ..protocols.peer import FleetVms
from ..protocols.services import ImageService, NodeService, OperationService, TokenService, VmService
from ..protocols.table import Dispatcher, method_of
from ..protocols.tunnel import PROTOCOL as TUNNEL
from ..protocols.vm import Vm
from .audit.log import SCHEMA as AUDIT_SCHEMA
from .audit.log import AuditLog, open_audit
from .backends import Backends, open_backends
from .config import Config, default_data_dir
from .disk_reserve import DiskReserve
from .dns import serve_names
from .events import EventLog, open_events
from .foundation import Foundation
from .guest.access import GuestAccess
from .guest.guests import Guests, open_guests
from .guest.operations import GuestOperations
from .guest.port import GuestStream
from .health import NodeHealth
from .home import Home, locked_home
from .identity import load_identity
from .image_operations.context import ImageContext
from .image_operations.reads import ImageReads, import_image
from .journal.journal import Journal, open_journal
from .journal.store import JournalStore
from .loopback import SCHEMA as LOOPBACK_SCHEMA
from .loopback import LoopbackAddresses, open_loopback_addresses
from .mesh import HostFactory, NodeParts, make_node_mesh_client, open_node_mesh
from .node_services import LocalNode, LocalOperations, LocalTokens
from .operations import open_operations
from .p2p.context import Serve, Served
from .p2p.mesh import Mesh
from .p2p.mesh_client import MeshClient
from .p2p.store import SCHEMA as MESH_SCHEMA
from .p2p.store import DatabaseKeyValueStore
from .reach.addresses import PeerAddresses
from .reach.consoles import Console, Consoles, open_consoles
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
from .vm.image_resolver import ImageResolver
from .vm.inventory import Inventory, open_inventory
from .vm.reads import VmReads
from .vm.watch import Watch, start_after_boot

log = structlog.get_logger(__name__)

# What destroys a VM, or makes something of it at its node: on another node the VM must be called NAME@NODE.
_EXPLICIT = frozenset({VmService.delete_vm.__name__, ImageService.capture_image.__name__})


@dataclass(kw_only=True, eq=False)
class Node:
    """A running node, as the API uses it: its parts, and calls that this node or a peer answers."""

    config: Config
    home: Home
    name: str
    peer_id: str
    version: str
    events: EventLog
    audit: AuditLog
    operations: Journal
    tokens: TokenStore
    backends: Backends
    vms: VmContext
    images: ImageContext
    mesh: Mesh
    tunnels: Tunnels
    consoles: Consoles
    screens: Screens
    streams: VmStreams
    peer_addresses: PeerAddresses
    places: VmPlaces
    health: NodeHealth

    @property
    def dispatcher(self) -> Dispatcher:
        """The operations of this node for its own users."""
        return self.mesh.dispatcher

    async def call(self, caller: Caller, method: Method, arguments: Mapping[str, Any], peer: str | None = None) -> Any:
        """Any operation, here or on a peer (an ID, a prefix, a name). The role is checked where the operation is done.

        Without a peer, a VM is looked for in the fleet. Raises: what the operation raises, and `VmPlaces`; Detached
        when the caller does not wait for its end.
        """
        vm = arguments.get("vm")
        if not isinstance(vm, str):
            return await self._record(caller, method, arguments, peer)

        async def do(name: str, at: str | None) -> Any:
            return await self._record(caller, method, {**arguments, "vm": name}, at)

        explicit = caller.detach or method.name in _EXPLICIT
        return await self.places.at_its_node(caller, vm, peer, do, explicit=explicit)

    async def _record(self, caller: Caller, method: Method, arguments: Mapping[str, Any], peer: str | None) -> Any:
        if not method.mutates:
            return await self._call(caller, method, arguments, peer)
        there = "" if self.is_here(peer) else str(peer)
        async with self.audit.record(caller, method.name, method.about(arguments), at_peer=there):
            return await self._call(caller, method, arguments, peer)

    async def _call(self, caller: Caller, method: Method, arguments: Mapping[str, Any], peer: str | None) -> Any:
        if self.is_here(peer):
            return await self.dispatcher.call(caller, method, arguments)
        if method.by_asked_node:
            return await self._forward(caller, method, arguments, str(peer))
        answer = await self.mesh.call(str(peer), method, arguments, caller)
        peer_id = self.mesh.resolve(str(peer))
        if self.is_here(peer_id):
            return answer
        return await self.peer_addresses.localize(caller, peer_id, method, arguments, answer)

    async def _forward(self, caller: Caller, method: Method, arguments: Mapping[str, Any], peer: str) -> Any:
        """Forwards to a peer's VM are ports of this node, and tunnels from there."""
        peer_id = self.tunnels.peer_of(peer)
        if self.is_here(peer_id):
            return await self.dispatcher.call(caller, method, arguments)
        caller.require(method.role, method.name)
        if not method.journalled:
            return await self.tunnels.list(caller, peer_id, **arguments)
        asked = {**arguments, "peer": peer_id}
        return await self.operations.run(
            msgspec.structs.replace(caller, detach=False), method, asked, through_peer=True
        )

    def console(self, caller: Caller, vm: str, peer: str | None = None) -> AbstractAsyncContextManager[Console]:
        """As `VmStreams.console`."""
        return self.streams.console(caller, vm, peer)

    def screen(self, caller: Caller, vm: str, peer: str | None = None) -> AbstractAsyncContextManager[Console]:
        """As `VmStreams.screen`."""
        return self.streams.screen(caller, vm, peer)

    def guest_stream(
        self, caller: Caller, vm: str, request: StreamRequest, peer: str | None = None
    ) -> AbstractAsyncContextManager[GuestStream]:
        """As `VmStreams.guest`."""
        return self.streams.guest(caller, vm, request, peer)

    def is_here(self, peer: str | None) -> bool:
        return peer in {None, "local", self.peer_id, self.name}

    def peer_id_of(self, peer: str) -> str:
        """The ID of the peer that a name, a prefix or an ID means. Raises: PeerNotFound, AmbiguousName."""
        return self.peer_id if self.is_here(peer) else self.mesh.resolve(peer)

    async def fleet_vms(self, caller: Caller) -> FleetVms:
        """The VMs of all known peers and of this node, in two seconds at the most; each row says how old it is."""
        found = await self.mesh.fleet_vms(caller)
        return msgspec.structs.replace(found, vms=[await self._localized(vm) for vm in found.vms])

    async def address_of(self, vm: str, peer: str | None) -> str | None:
        """The address at which a VM answers on this machine; without `peer` one of this node, else the only one.

        Raises: VmNotFound, PeerNotFound, AmbiguousName, and what the peer raises.
        """
        found: Vm = await self.call(LOCAL_ADMIN, method_of(VmService.get_vm), {"vm": vm}, peer)
        return found.ip

    async def _localized(self, vm: Vm) -> Vm:
        try:
            peer_id = self.peer_id_of(vm.node or "")
        except TwinshareError:  # two peers of one name, or one that has left
            return msgspec.structs.replace(vm, ip=None, ports=[])
        return vm if self.is_here(peer_id) else await self.peer_addresses.vm(peer_id, vm)

    @property
    def addresses(self) -> list[str]:
        """Where peers reach this node: multiaddrs that end in its ID."""
        running = self.mesh.running
        return list(running.host.addresses) if running else []

    async def import_image(
        self, caller: Caller, ref: str, content: AsyncIterable[bytes], *, raw: bool = False
    ) -> Image:
        async with self.audit.record(caller, "import_image", ref):
            return await import_image(self.images, caller, ref, content, raw=raw)

    def guest_pids(self) -> list[int]:
        """Processes that speak for guests: no connection of theirs is this user's."""
        return list(self.backends.guest_pids())


def node_name(config: Config) -> str:
    """The configured name, else the machine's."""
    name = config.node.name or platform.node() or "node"
    return re.sub(r"[^A-Za-z0-9.-]", "-", name)[:63]


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
        vms = _vm_context(
            base, inventory, Forwards(backends.hypervisor, inventory, relays, backends.admits), loopback, peers
        )
        images = ImageContext(backends.images, backends.exchange, events, vms, backends.scratch)
        tunnels = Tunnels(relays, DatabaseKeyValueStore(base.state), peers)
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
            served = _served_streams(vms, backends, consoles, screens, access)
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
    vms: VmContext, backends: Backends, consoles: Consoles, screens: Screens, guests: GuestAccess
) -> dict[str, Serve]:
    """What peers may open, by its protocol."""
    return {
        TUNNEL: TunnelServer(vms).serve,
        CONSOLE: ConsoleServer(consoles.attach).serve,
        SCREEN: ConsoleServer(screens.attach).serve,
        GUEST: GuestStreamServer(guests).serve,
        BLOB: BlobServer(backends.images).serve,
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
