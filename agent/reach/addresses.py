"""Addresses of this node's loopback for the VMs of peers: a connection to one goes to the peer by a tunnel.

A peer answers with addresses of its own machine, which lead nowhere from here. So each answer gets this node's: opened
when somebody asks for the VM, closed when the peer says that it is off or gone. Whoever connects is this node's own
user; the peer decides by this node's role there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from ...protocols.access import LOCAL_ADMIN, Caller
from ...protocols.method import Method
from ...protocols.services import VmService
from ...protocols.table import methods
from ...protocols.tunnel import TunnelRequest
from ...protocols.vm import Vm, VmAddresses, VmStatus
from ..loopback import MAX_LISTENERS, LoopbackAddresses
from ..p2p.host import PeerId, Stream
from ..p2p.mesh_client import MeshClient
from ..vm.addresses import SSH, labelled_ports
from .tunnel import open_tunnel

MAX_VMS = 128
"""Of one peer: those that run."""
MAX_PORTS = 16
"""Of one VM."""
SHARE = MAX_LISTENERS // 2
"""Listeners for the VMs of peers, so that there are always some for this node's own."""
GET_VM, LIST_VMS = methods(VmService)["get_vm"], methods(VmService)["list_vms"]
_RUNNING = {VmStatus.RUNNING, VmStatus.PAUSED}


class PeerAddresses:
    """Puts this node's addresses into the answers of peers."""

    def __init__(self, loopback: LoopbackAddresses, mesh: MeshClient) -> None:
        self._loopback, self._mesh = loopback, mesh
        self._open: dict[PeerId, set[str]] = {}

    async def localize(self, caller: Caller, peer: PeerId, method: Method, arguments: Any, answer: Any) -> Any:
        """Return a peer's answer with addresses that lead to its VMs from here. Raises: what the peer raises."""
        if isinstance(answer, VmAddresses):
            vm = await self._mesh.call(peer, GET_VM, {"vm": arguments["vm"]}, caller)
            ip = (await self.vm(peer, vm)).ip
            return msgspec.structs.replace(answer, ip=ip, guest_ip=answer.guest_ip or answer.ip)
        if isinstance(answer, Vm):
            return await self.vm(peer, answer)
        if method == LIST_VMS:
            await self._forget_all_but(peer, {vm.id for vm in answer})
            return [await self.vm(peer, vm) for vm in answer]
        return answer

    async def vm(self, peer: PeerId, vm: Vm) -> Vm:
        """Return a peer's VM with its address here; None while its guest has none, or this node has no more."""
        running = self._open.setdefault(peer, set())
        guest_ip = vm.guest_ip or vm.ip
        if vm.ip is None or vm.status not in _RUNNING or (vm.id not in running and len(running) >= MAX_VMS):
            running.discard(vm.id)
            self._loopback.close(_key(peer, vm.id))
            return msgspec.structs.replace(vm, ip=None, guest_ip=guest_ip, ports=[])
        running.add(vm.id)
        key, wanted = _key(peer, vm.id), ports_of(vm)
        dials = {port: partial(self._dial, peer, vm.id, port) for port in wanted}
        address = await self._loopback.open(key, dials, SHARE)
        return msgspec.structs.replace(vm, ip=address, guest_ip=guest_ip, ports=list(self._loopback.ports(key)))

    async def _forget_all_but(self, peer: PeerId, there: set[str]) -> None:
        for id in self._open.get(peer, set()) - there:
            self._open[peer].discard(id)
            await self._loopback.forget(_key(peer, id))

    async def _dial(self, peer: PeerId, vm: str, port: int) -> Stream:
        request = TunnelRequest(vm=vm, port=port, role=LOCAL_ADMIN.role, principal=LOCAL_ADMIN.delegate)
        _, stream = await open_tunnel(self._mesh, peer, request)
        return stream


def ports_of(vm: Vm) -> Sequence[int]:
    """Return the ports to open for a peer's VM: those that its node has open, and what a former version would have."""
    wanted = dict.fromkeys([SSH, *labelled_ports(vm.labels), *vm.ports])
    return [port for port in wanted if 0 < port < 65536][:MAX_PORTS]


def _key(peer: PeerId, vm: str) -> str:
    return f"{peer}/{vm}"
