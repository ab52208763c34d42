"""Which node a reference to a VM means: `NAME@NODE`, a VM of this node, or the only one of that name in the fleet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from ...protocols.access import Caller
from ...protocols.errors import AmbiguousName, InvalidRequest, VmNotFound
from ..p2p.host import PeerId
from ..p2p.mesh import Mesh
from ..vm.inventory import Inventory

T = TypeVar("T")
Do: TypeAlias = Callable[[str, str | None], Awaitable[T]]
"""Works on a VM by its name and its peer, None for this node. Raises: VmNotFound before anything is done."""


class VmPlaces:
    """Finds VMs for callers of this node's API."""

    def __init__(self, mesh: Mesh, node: str, inventory: Inventory) -> None:
        """`node` is the name of this node."""
        self._mesh, self._inventory = mesh, inventory
        self._here = {None, "local", mesh.peer_id, node}

    def far(self, peer: str | None) -> PeerId | None:
        """Return the peer that a reference means, None for this node. Raises: PeerNotFound, AmbiguousName."""
        peer_id = None if peer in self._here else self._mesh.resolve(str(peer))
        return None if peer_id == self._mesh.peer_id else peer_id

    async def at_its_node(self, caller: Caller, vm: str, peer: str | None, do: Do[T], *, explicit: bool = False) -> T:
        """Do something with a VM at the node that has it; a `peer`, `local` included, is the only node that is asked.

        With `explicit` a VM of another node must be called NAME@NODE: for what destroys a VM, which a repeated request
        must not do to another one of that name, and for operations that are looked up later, at their node.

        Raises: InvalidRequest, PeerNotFound; AmbiguousName when several nodes have such a VM; what `do` raises.
        """
        name, at = self._split(vm, peer)
        try:
            return await do(name, at)
        except VmNotFound as error:
            if at is not None or self._inventory.has(name):
                raise
            not_here = error
        return await do(name, await self._find(caller, name, not_here, explicit=explicit))

    def _split(self, vm: str, peer: str | None) -> tuple[str, str | None]:
        """Raises: InvalidRequest, PeerNotFound, AmbiguousName."""
        name, at, node = vm.rpartition("@")
        if not at or (peer is None and self._inventory.has(vm)):
            return vm, peer
        if not name or not node:
            raise InvalidRequest(f"'{vm}' is not NAME@NODE", path="vm")
        far = self.far(node)  # here, where it is not found: P2P services that are stopped would hide that
        if peer is not None and self.far(peer) != far:
            raise InvalidRequest(f"'{vm}' names another node than '{peer}', which the request is for", path="vm")
        return name, node if peer is None else peer

    async def _find(self, caller: Caller, ref: str, not_here: VmNotFound, *, explicit: bool) -> str:
        """Return the peer that has a VM. Raises: `not_here` when nobody has; AmbiguousName."""
        if not self._mesh.context.membership.peers:
            raise not_here
        fleet = await self._mesh.fleet_vms(caller)
        found = {f"{row.name}@{row.node}": row.node for row in fleet.vms if row.node and ref in (row.name, row.id)}
        if not found and fleet.unreachable:
            absent = [peer.name for peer in fleet.unreachable]
            message = f"{not_here.message}; {' and '.join(absent)} could not be asked"
            raise VmNotFound(message, vm=ref, not_asked=absent)
        if not found:
            raise not_here
        if len(found) > 1:
            choices = " or ".join(f"'{one}'" for one in found)
            raise AmbiguousName(f"several nodes have a VM '{ref}'; say which: {choices}", candidates=list(found))
        [(candidate, node)] = found.items()
        if explicit:
            message = f"{not_here.message} on this node; ask for '{candidate}'"
            raise VmNotFound(message, vm=ref, candidates=[candidate])
        return node
