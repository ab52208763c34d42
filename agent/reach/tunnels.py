"""Ports of this node that lead to guests of peers: kept in the node's database, open from start to stop.

A kept tunnel acts with the role of whoever made it, at most. One whose VM is gone for good goes with it: at the next
connection, or when its peer is asked for its VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog
import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import PortTaken, TwinshareError, VmNotFound
from ...protocols.services import VmService
from ...protocols.table import methods
from ...protocols.tolerant import decode_tolerantly
from ...protocols.tunnel import TunnelAnswer, TunnelRequest
from ...protocols.vm import Forward, ForwardSpec
from ..p2p.host import PeerId, Stream
from ..p2p.mesh_client import MeshClient
from ..p2p.store import KeyValueStore
from ..relays import Relays
from ..vm.forwards import forward_view
from ..vm.host_ports import HostPorts, PortUser
from .tunnel import open_tunnel

log = structlog.get_logger(__name__)

KIND = "tunnel"
MAX_KEPT = 256
GET_VM, LIST_VMS = methods(VmService)["get_vm"], methods(VmService)["list_vms"]
WEED_EVERY = 60.0
LOOK_FOR_ENDS_EVERY = 0.5


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """One port. `owner` is who made it on this node, `role` what they had then, `until` that of the `Caller`."""

    peer: PeerId
    vm_id: str
    vm_name: str
    spec: ForwardSpec
    owner: str
    role: Role
    until: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        return ("tunnel", self.spec.bind, str(self.spec.host_port))

    @property
    def user(self) -> PortUser:
        return PortUser(f"{self.peer}/{self.vm_id}", self.vm_name)

    def is_of(self, peer: PeerId, vm: str) -> bool:
        return self.peer == peer and vm in (self.vm_id, self.vm_name)


@dataclass(slots=True)
class Tunnels:
    """All of them."""

    relays: Relays
    ports: HostPorts
    store: KeyValueStore
    mesh: MeshClient
    kept: dict[tuple[str, ...], Tunnel] = field(default_factory=dict)
    _claims: dict[tuple[str, ...], object] = field(default_factory=dict)

    def peer_of(self, ref: str) -> PeerId:
        """The peer that a user means; one that has left the fleet is known by its ID while a tunnel to it is kept.

        Raises: P2pStopped, PeerNotFound, AmbiguousName.
        """
        self.mesh.require_running()
        if any(tunnel.peer == ref for tunnel in self.kept.values()):
            return ref
        return self.mesh.resolve(ref)

    async def open_kept(self) -> None:
        """Open what was kept; a port that another program took meanwhile stays closed, and is listed so."""
        for value in (await self.store.load(KIND)).values():
            tunnel = decode_tolerantly(value, Tunnel)
            self._keep(tunnel)
            await self._try_to_listen(tunnel)

    async def _try_to_listen(self, tunnel: Tunnel) -> None:
        try:
            await self._listen(tunnel)
        except PortTaken as error:
            log.warning("a tunnel cannot be opened", vm=tunnel.vm_name, error=error.message)

    def view(self, tunnel: Tunnel) -> Forward:
        return forward_view(tunnel.spec, active=self.relays.port(tunnel.key) is not None)

    def of(self, peer: PeerId, vm: str) -> Sequence[Tunnel]:
        """The tunnels to a VM of a peer, by the VM's name or id."""
        return [tunnel for tunnel in self.kept.values() if tunnel.is_of(peer, vm)]

    async def list(self, caller: Caller, peer: PeerId, vm: str) -> list[Forward]:
        """List the ports of this node that lead to a VM of a peer. Raises: what the peer raises where there is none."""
        found = self.of(peer, vm)
        if not found:
            await self.mesh.call(peer, GET_VM, {"vm": vm}, caller)
        return [self.view(tunnel) for tunnel in found]

    async def probe(self, peer: PeerId, vm: str, port: int, caller: Caller) -> TunnelAnswer:
        """The owner's word that there may be a tunnel. Raises: what the owner raises; PeerUnreachable."""
        request = TunnelRequest(vm=vm, port=port, role=caller.role, principal=caller.delegate, probe=True)
        answer, stream = await open_tunnel(self.mesh, peer, request)
        await trio.aclose_forcefully(stream)
        return answer

    async def open(self, tunnel: Tunnel) -> None:
        """Open a tunnel's port and keep the tunnel. Raises: PortTaken, InsufficientResources."""
        await self._listen(tunnel)
        try:
            await self.store.put(KIND, "|".join(tunnel.key), msgspec.msgpack.encode(tunnel))
        except TwinshareError:
            self.relays.close(tunnel.key)
            raise
        self._keep(tunnel)

    def _keep(self, tunnel: Tunnel) -> None:
        self._drop(tunnel.key)
        self.kept[tunnel.key] = tunnel
        with suppress(PortTaken):  # of a former version, which let a stopped VM have it too
            self._claims[tunnel.key] = self.ports.claim(tunnel.spec, tunnel.user)

    def _drop(self, key: tuple[str, ...]) -> None:
        self.kept.pop(key, None)
        self.ports.release(self._claims.pop(key, None))

    async def forget(self, key: tuple[str, ...]) -> None:
        """Delete a tunnel. Its port is closed last, because the request may come through it."""
        await self.store.drop(KIND, "|".join(key))
        self._drop(key)
        self.relays.close(key)

    async def tend(self) -> None:
        """Delete the tunnels whose VMs are gone, though nobody connects to them, and open those whose ports were taken.

        Runs until it is cancelled.
        """
        while True:
            await trio.sleep(WEED_EVERY)
            # Those that there are before a peer is asked: a newer one may lead to a newer VM.
            kept = list(self.kept.values())
            for peer in {tunnel.peer for tunnel in kept}:
                await self._weed(peer, [tunnel for tunnel in kept if tunnel.peer == peer])
            for tunnel in list(self.kept.values()):
                if self.relays.port(tunnel.key) is None:
                    await self._try_to_listen(tunnel)
                if tunnel.key not in self.kept:  # deleted meanwhile
                    self.relays.close(tunnel.key)

    async def end_with_principals(self, holds: Callable[[str, float | None], bool]) -> None:
        """Delete the tunnels of tokens that have ended, and their connections; runs until it is cancelled."""
        while True:
            for tunnel in [tunnel for tunnel in self.kept.values() if not holds(tunnel.owner, tunnel.until)]:
                log.info("a tunnel ends with the token that opened it", vm=tunnel.vm_name, owner=tunnel.owner)
                # The port first: a database that is slow or full must not keep it open.
                self.relays.close(tunnel.key)
                self._drop(tunnel.key)
                try:
                    await self.store.drop(KIND, "|".join(tunnel.key))
                except TwinshareError as error:
                    log.warning("a tunnel is deleted at the next start", vm=tunnel.vm_name, error=error.message)
            await trio.sleep(LOOK_FOR_ENDS_EVERY)

    async def _weed(self, peer: PeerId, tunnels: Sequence[Tunnel]) -> None:
        try:
            there = {vm.id for vm in await self.mesh.call(peer, LIST_VMS, {}, LOCAL_ADMIN)}
            for tunnel in tunnels:
                if tunnel.vm_id not in there and self.kept.get(tunnel.key) == tunnel:
                    log.info("a tunnel's VM is gone, and the tunnel with it", vm=tunnel.vm_name)
                    await self.forget(tunnel.key)
        except TwinshareError as error:
            log.debug("whether the VMs of tunnels are there is not known", peer=peer, why=error.message)

    async def _listen(self, tunnel: Tunnel) -> None:
        spec = tunnel.spec
        await self.relays.open(tunnel.key, spec.bind, spec.host_port, partial(self._dial, tunnel))

    async def _dial(self, tunnel: Tunnel) -> Stream:
        maker = Caller(principal=tunnel.owner, role=tunnel.role)
        request = TunnelRequest(vm=tunnel.vm_id, port=tunnel.spec.guest_port, role=maker.role, principal=maker.delegate)
        try:
            _, stream = await open_tunnel(self.mesh, tunnel.peer, request)
        except VmNotFound:
            log.info("a tunnel's VM is gone, and the tunnel with it", vm=tunnel.vm_name, port=tunnel.spec.host_port)
            await self.forget(tunnel.key)
            raise
        return stream
