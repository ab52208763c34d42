"""Ports of this node that lead to guests of peers: kept in the node's database, open from start to stop.

A kept tunnel acts with the role of whoever made it, at most. One whose VM is gone for good goes with it: at the next
connection, or when its peer is asked for its VMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog
import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import Forbidden, ForwardNotFound, PortTaken, TwinshareError, Unsupported, VmNotFound
from ...protocols.services import VmService
from ...protocols.table import methods
from ...protocols.tolerant import decode_tolerantly
from ...protocols.tunnel import TunnelAnswer, TunnelRequest
from ...protocols.vm import Forward, ForwardSpec
from ..journal.operations import Operations
from ..journal.run import Recipe, Release, Run, nothing_claimed
from ..p2p.host import PeerId, Stream
from ..p2p.mesh import Mesh
from ..p2p.mesh_services import stopped
from ..p2p.store import KeyValueStore
from ..relays import Relays, listen
from .tunnel import open_tunnel

log = structlog.get_logger(__name__)

KIND = "tunnel"
MAX_KEPT = 256
METHODS = frozenset({"list_forwards", "add_forward", "remove_forward"})
GET_VM, LIST_VMS = methods(VmService)["get_vm"], methods(VmService)["list_vms"]
WEED_EVERY = 60.0


class Tunnel(msgspec.Struct, frozen=True, kw_only=True):
    """One port. `owner` is who made it on this node, `role` what they had then."""

    peer: PeerId
    vm_id: str
    vm_name: str
    spec: ForwardSpec
    owner: str
    role: Role

    @property
    def key(self) -> tuple[str, ...]:
        return ("tunnel", self.spec.bind, str(self.spec.host_port))

    def is_of(self, peer: PeerId, vm: str) -> bool:
        return self.peer == peer and vm in (self.vm_id, self.vm_name)


class TunnelChange(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation on a tunnel was asked."""

    peer: PeerId
    vm: str
    spec: ForwardSpec


@dataclass(slots=True)
class Tunnels:
    """All of them. The mesh comes last, when a node starts: `join` it then."""

    relays: Relays
    store: KeyValueStore
    operations: Operations
    kept: dict[tuple[str, ...], Tunnel] = field(default_factory=dict)
    _mesh: Mesh | None = None

    @property
    def mesh(self) -> Mesh:
        """Raises: P2pStopped."""
        if self._mesh is None:
            raise stopped()
        return self._mesh

    def peer_of(self, ref: str) -> PeerId:
        """The peer that a user means; one that has left the fleet is known by its ID while a tunnel to it is kept.

        Raises: P2pStopped, PeerNotFound, AmbiguousName.
        """
        self.mesh.require_running()
        if any(tunnel.peer == ref for tunnel in self.kept.values()):
            return ref
        return self.mesh.resolve(ref)

    def add_recipes(self) -> None:
        self.operations.recipes["add_tunnel"] = Recipe(TunnelChange, Forward, self._add)
        self.operations.recipes["remove_tunnel"] = Recipe(TunnelChange, Forward, self._remove, frees=True)

    async def join(self, mesh: Mesh) -> None:
        """Open what was kept; a port that another program took meanwhile stays closed, and is listed so."""
        self._mesh = mesh
        for value in (await self.store.load(KIND)).values():
            tunnel = decode_tolerantly(value, Tunnel)
            self.kept[tunnel.key] = tunnel
            try:
                await self._listen(tunnel)
            except PortTaken as error:
                log.warning("a tunnel cannot be opened", vm=tunnel.vm_name, error=error.message)

    def view(self, tunnel: Tunnel) -> Forward:
        spec, active = tunnel.spec, self.relays.port(tunnel.key) is not None
        return Forward(
            host_port=spec.host_port, guest_port=spec.guest_port, protocol=spec.protocol, bind=spec.bind, active=active
        )

    async def probe(self, peer: PeerId, vm: str, port: int, caller: Caller) -> TunnelAnswer:
        """The owner's word that there may be a tunnel. Raises: what the owner raises; PeerUnreachable."""
        request = TunnelRequest(vm=vm, port=port, role=caller.role, principal=caller.delegate, probe=True)
        answer, stream = await open_tunnel(self.mesh, peer, request)
        await trio.aclose_forcefully(stream)
        return answer

    async def _add(self, run: Run) -> Forward:
        tunnel = msgspec.convert(run.notes["tunnel"], Tunnel)
        if not tunnel.spec.host_port:
            port = run.notes.get("port") or await _free_port(tunnel.spec.bind)
            tunnel = msgspec.structs.replace(tunnel, spec=msgspec.structs.replace(tunnel.spec, host_port=port))
            await run.step("port", port=port)
        await self._listen(tunnel)
        try:
            await self.store.put(KIND, "|".join(tunnel.key), msgspec.msgpack.encode(tunnel))
        except TwinshareError:
            self.relays.close(tunnel.key)
            raise
        self.kept[tunnel.key] = tunnel
        return self.view(tunnel)

    async def _remove(self, run: Run) -> Forward:
        asked: TunnelChange = run.request
        key = tuple(run.notes["key"])
        await self.forget(key)
        spec = asked.spec
        return Forward(
            host_port=spec.host_port, guest_port=spec.guest_port, protocol=spec.protocol, bind=spec.bind, active=False
        )

    async def forget(self, key: tuple[str, ...]) -> None:
        """For good. The port last: whoever asks may be a connection through it."""
        await self.store.drop(KIND, "|".join(key))
        self.kept.pop(key, None)
        self.relays.close(key)

    async def tend(self) -> None:
        """For ever: let go of tunnels whose VMs are gone, though nobody comes through them to find that out."""
        while True:
            await trio.sleep(WEED_EVERY)
            # Those that there are before a peer is asked: a newer one may lead to a newer VM.
            kept = list(self.kept.values())
            for peer in {tunnel.peer for tunnel in kept}:
                await self._weed(peer, [tunnel for tunnel in kept if tunnel.peer == peer])

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


class RemoteForwards:
    """The three operations on forwards of `VmService`, for a caller of this node and the VMs of one peer."""

    def __init__(self, tunnels: Tunnels, caller: Caller, peer: PeerId) -> None:
        self._tunnels, self._caller, self._peer = tunnels, msgspec.structs.replace(caller, detach=False), peer

    def _of(self, vm: str) -> list[Tunnel]:
        return [tunnel for tunnel in self._tunnels.kept.values() if tunnel.is_of(self._peer, vm)]

    async def list_forwards(self, vm: str) -> list[Forward]:
        found = self._of(vm)
        if not found:
            await self._tunnels.mesh.call(self._peer, GET_VM, {"vm": vm}, self._caller)
        return [self._tunnels.view(tunnel) for tunnel in found]

    async def add_forward(self, vm: str, forward: ForwardSpec) -> Forward:
        async def admit(run: Run) -> Release:
            tunnels = self._tunnels
            if forward.protocol != "tcp":
                raise Unsupported("only tcp can be forwarded")
            if len(tunnels.kept) >= MAX_KEPT:
                raise Forbidden(f"this node keeps {MAX_KEPT} tunnels at most")
            answer = await tunnels.probe(self._peer, vm, forward.guest_port, self._caller)
            tunnel = Tunnel(
                peer=self._peer, vm_id=answer.vm_id, vm_name=answer.vm_name, spec=forward,
                owner=run.principal, role=self._caller.role,
            )  # fmt: skip
            there = tunnels.kept.get(tunnel.key)
            if there is not None and (there.peer, there.vm_id, there.spec) != (tunnel.peer, tunnel.vm_id, forward):
                raise PortTaken(
                    f"port {forward.host_port} is forwarded to VM '{there.vm_name}'", port=forward.host_port
                )
            run.notes = {"tunnel": msgspec.to_builtins(tunnel)}
            return nothing_claimed

        change = TunnelChange(peer=self._peer, vm=vm, spec=forward)
        made: Forward = await self._tunnels.operations.run(self._caller, "add_tunnel", vm, change, admit)
        return made

    async def remove_forward(self, vm: str, host_port: int) -> Forward:
        async def admit(run: Run) -> Release:
            if tunnel is None:
                raise ForwardNotFound(f"no port {host_port} of this node leads to VM '{vm}'", port=host_port)
            if not self._caller.may_change(tunnel.owner):
                raise Forbidden(f"the tunnel belongs to {tunnel.owner}; this needs the role admin", role_needed="admin")
            run.notes = {"key": list(tunnel.key)}
            return nothing_claimed

        tunnel = next((one for one in self._of(vm) if one.spec.host_port == host_port), None)
        spec = tunnel.spec if tunnel else ForwardSpec(host_port=host_port, guest_port=1)
        change = TunnelChange(peer=self._peer, vm=vm, spec=spec)
        gone: Forward = await self._tunnels.operations.run(self._caller, "remove_tunnel", vm, change, admit)
        return gone


async def _free_port(bind: str) -> int:
    listeners = await listen(bind, 0)
    port: int = listeners[0].socket.getsockname()[1]
    for listener in listeners:
        await listener.aclose()
    return port
