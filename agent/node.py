"""One running node, as the API and the tests use it: its parts, and calls that it or a peer answers."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec

from ..protocols.access import LOCAL_ADMIN, Caller
from ..protocols.errors import TwinshareError
from ..protocols.guest_stream import StreamRequest
from ..protocols.image import Image
from ..protocols.image_service import ImageService
from ..protocols.membership.statements import as_label
from ..protocols.method import Method
from ..protocols.peer import FleetVms
from ..protocols.services import VmService
from ..protocols.table import Dispatcher, method_of
from ..protocols.vm import Vm
from .audit.log import AuditLog
from .backends import Backends
from .config import Config
from .events import EventLog
from .guest.port import GuestStream
from .health import NodeHealth
from .home import Home
from .image_operations.context import ImageContext
from .image_operations.reads import import_image
from .journal.journal import Journal
from .p2p.mesh import Mesh
from .reach.addresses import PeerAddresses
from .reach.consoles import Console, Consoles
from .reach.screens import Screens
from .reach.tunnels import Tunnels
from .reach.vm_places import VmPlaces
from .reach.vm_streams import VmStreams
from .tokens import TokenStore
from .vm.context import VmContext

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
    return as_label(config.node.name or platform.node())
