"""`/api/v1/vms`: the VMs of this node as Meda shows them."""

from __future__ import annotations

import msgspec
import trio

from ...agent.node import Node
from ...agent.vm.record import vm_id
from ...protocols.access import Caller, Role
from ...protocols.errors import ImageNotFound, VmNotFound, WrongState
from ...protocols.image import Image, PullRequest
from ...protocols.routes import rest
from ...protocols.services import Port
from ...protocols.size import GIB, MIB, exact_size
from ...protocols.vm import ForwardSpec, Vm, VmRef, VmSpec, VmStatus
from .bodies import NO_IP, NONE, Done, ForwardList, VmAddress, VmCreate, VmDetail, VmFacts, VmInfo, VmList
from .capacity import check_replacement
from .specs import read_user_data, vm_spec
from .table import TABLE

# How long, in seconds, a guest that is booting is waited for before its address is refused.
IP_TIMEOUT = 20.0
_LOOK_EVERY = 0.5


def vm_info(vm: Vm) -> VmInfo:
    return VmInfo(
        name=vm.name,
        state=str(vm.status),
        ip=vm.ip or NO_IP,
        vcpus=str(vm.cpu_cores),
        memory=exact_size(vm.memory * MIB),
        disk=exact_size(vm.disk_size * GIB),
        devices=[],
        created=vm.created_at,
    )


async def size_of(node: Node, caller: Caller, image: str) -> int:
    """The least that a disk on the image needs, in bytes; nothing while it is not here. Raises: InvalidRequest."""
    try:
        found: Image = await node.call(caller, TABLE["get_image"], {"image": image})
    except ImageNotFound:
        return 0
    return found.size


class MedaVms:
    """The VMs of this node.

    An instance serves one caller.
    """

    ip_timeout = IP_TIMEOUT

    def __init__(self, node: Node, caller: Caller) -> None:
        self._node, self._caller = node, caller

    async def _do(self, name: str, **arguments: object) -> Vm:
        vm: Vm = await self._node.call(self._caller, TABLE[name], arguments)
        return vm

    @rest("GET", "/vms", Role.VIEWER)
    async def list_vms(self) -> VmList:
        """List the VMs."""
        vms: list[Vm] = await self._node.call(self._caller, TABLE["list_vms"], {})
        return VmList(vms=[vm_info(vm) for vm in vms], count=len(vms))

    @rest("POST", "/vms", Role.OPERATOR)
    async def create_vm(self, request: VmCreate) -> Done:
        """Create a VM from the default image; start it afterwards."""
        image = self._node.config.images.default
        user_data = await read_user_data(request.user_data, self._node.config.api.allow_user_data_dir)
        size = await size_of(self._node, self._caller, image)
        spec = vm_spec(request, request.name, image, size, user_data, start=False)
        if request.force:
            await self._make_way(spec)
        await self._do("create_vm", spec=spec)
        return Done(message=f"Successfully created VM: {request.name}")

    async def _make_way(self, spec: VmSpec) -> None:
        """Delete the VM that has the name, unless this very request has made it, or its successor could not be made."""
        key = self._caller.idempotency_key
        try:
            there: Vm = await self._node.call(self._caller, TABLE["get_vm"], {"vm": spec.name}, "local")
        except VmNotFound:
            return
        if key is not None and there.id == vm_id(key):
            return
        check_replacement(self._node.health.capacity(), there, spec)
        alone = msgspec.structs.replace(self._caller, idempotency_key=None, detach=False)
        if not await size_of(self._node, alone, spec.image):
            await self._node.call(alone, TABLE["pull_image"], {"request": PullRequest(image=spec.image)})
        await self._node.call(alone, TABLE["delete_vm"], {"vm": there.id, "force": True}, "local")

    @rest("GET", "/vms/<name>", Role.VIEWER)
    async def get_vm(self, name: VmRef) -> VmDetail:
        """Show one VM."""
        vm = await self._do("get_vm", vm=name)
        facts = VmFacts(
            guest_ip=vm.guest_ip or NONE,
            subnet=vm.guest_ip.rpartition(".")[0] if vm.guest_ip and "." in vm.guest_ip else NONE,
            mac=vm.mac or NONE,
            tap_device=NONE,
            memory=exact_size(vm.memory * MIB),
            disk_size=exact_size(vm.disk_size * GIB),
            vm_dir=f"vms/{vm.name}",
        )
        return VmDetail(name=vm.name, state=str(vm.status), ip=vm.ip, details=facts)

    @rest("POST", "/vms/<name>/start", Role.OPERATOR)
    async def start_vm(self, name: VmRef) -> Done:
        """Start a VM; one that runs stays as it is."""
        vm = await self._do("start_vm", vm=name)
        return Done(message=f"Successfully started VM: {vm.name}", vm=vm_info(vm))

    @rest("POST", "/vms/<name>/stop", Role.OPERATOR)
    async def stop_vm(self, name: VmRef, force: bool = False) -> Done:
        """Shut a VM down; `force` powers it off."""
        vm = await self._do("stop_vm", vm=name, force=force)
        return Done(message=f"Successfully stopped VM: {vm.name}", vm=vm_info(vm))

    @rest("DELETE", "/vms/<name>", Role.OPERATOR)
    async def delete_vm(self, name: VmRef) -> Done:
        """Delete a VM and its disk; one that runs is stopped first."""
        vm = await self._do("delete_vm", vm=name, force=True)
        return Done(message=f"Successfully deleted VM: {vm.name}")

    @rest("GET", "/vms/<name>/ip", Role.VIEWER)
    async def get_vm_ip(self, name: VmRef) -> VmAddress:
        """Show the guest's address; a guest that boots is waited for."""
        with trio.move_on_after(self.ip_timeout):
            while True:
                vm = await self._do("get_vm", vm=name)
                if vm.status is not VmStatus.RUNNING:
                    raise WrongState(f"VM '{vm.name}' is {vm.status}; only one that runs has an address", vm=vm.name)
                found = await self._node.call(self._caller, TABLE["vm_ip"], {"vm": name})
                if found.ip is not None:
                    return VmAddress(vm=vm.name, ip=found.ip)
                await trio.sleep(_LOOK_EVERY)
        raise WrongState(f"VM '{name}' has no address yet; its guest may still be booting, ask again", vm=name)

    @rest("GET", "/vms/<name>/port-forward", Role.VIEWER)
    async def list_forwards(self, name: VmRef) -> ForwardList:
        """List the ports that are forwarded to a VM."""
        found = await self._node.call(self._caller, TABLE["list_forwards"], {"vm": name})
        return ForwardList(forwards=found, count=len(found))

    @rest("POST", "/vms/<name>/port-forward", Role.OPERATOR)
    async def port_forward(self, name: VmRef, forward: ForwardSpec) -> Done:
        """Forward a port of the node to the guest, now and whenever it runs."""
        made = await self._node.call(self._caller, TABLE["add_forward"], {"vm": name, "forward": forward})
        return await self._forwarded(name, f"Port forwarding set up: {made.host_port} -> {made.guest_port}")

    @rest("DELETE", "/vms/<name>/port-forward/<host_port>", Role.OPERATOR)
    async def remove_forward(self, name: VmRef, host_port: Port) -> Done:
        """End a port forward."""
        await self._node.call(self._caller, TABLE["remove_forward"], {"vm": name, "host_port": host_port})
        return await self._forwarded(name, f"Port forwarding removed: {host_port}")

    async def _forwarded(self, name: str, message: str) -> Done:
        return Done(message=message, vm=vm_info(await self._do("get_vm", vm=name)))
