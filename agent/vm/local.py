"""The VMs of this node, as one caller may use them: `VmService`, on the machine that owns them.

What can be refused is refused here, before the journal writes anything; how things are done is in `recipes`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from ...protocols.access import Caller
from ...protocols.errors import Forbidden, HypervisorDown, InvalidRequest, Unsupported, VmExists, VmNotFound
from ...protocols.node import Room
from ...protocols.vm import (
    Blob,
    ConsoleLog,
    Forward,
    ForwardSpec,
    Vm,
    VmAddresses,
    VmChange,
    VmSpec,
    VmStats,
)
from ..config import HypervisorConfig
from ..hypervisor.port import GuestInspection, Hypervisor
from ..journal.operations import Operations
from ..journal.run import Recipe, Release, Run, nothing_claimed
from .admission import Ledger
from .forwards import Forwards, check_bind
from .guest import check_cloud_init
from .inventory import Inventory
from .lifecycle import require_state
from .quota import check_quota
from .recipes import VmRecipes, VmRequest
from .record import Record, VmMetadata
from .supply import Supply, check_disk_size

Asked = TypeVar("Asked")


@dataclass(slots=True)
class VmRoom:
    """What the VMs of a node are made with; `LocalVms` binds it to a caller."""

    hypervisor: Hypervisor
    supply: Supply
    inventory: Inventory
    operations: Operations
    recipes: VmRecipes
    forwards: Forwards
    ledger: Ledger
    limits: HypervisorConfig

    def add_recipes(self) -> None:
        """Tell the journal how each mutation is done."""
        steps = self.recipes
        table = self.operations.recipes
        table["create_vm"] = Recipe(VmSpec, Vm, steps.create, steps.undo_create, self._claim_create)
        for name, do in (
            ("start_vm", steps.start),
            ("stop_vm", steps.stop),
            ("restart_vm", steps.restart),
            ("pause_vm", steps.pause),
            ("resume_vm", steps.resume),
            ("update_vm", steps.update),
            ("delete_vm", steps.delete),
        ):
            table[name] = Recipe(VmRequest, Vm, do, frees=name in {"stop_vm", "delete_vm"})
        table["add_forward"] = Recipe(ForwardSpec, Forward, self.forwards.add)
        table["remove_forward"] = Recipe(int, Forward, self.forwards.remove)

    def _claim_create(self, run: Run) -> Release:
        digest = run.notes["metadata"]["digest"]
        return self._claimed(run.request, digest, self.ledger.claim_again(_need(run.request)))

    def users_of(self, digest: str) -> list[str]:
        """The names of the VMs that stand on an image, the ones being created and the disks that were kept included."""
        making = [name for name, base in self.supply.promised.items() if base == digest]
        kept = [f"the kept disk of {name}" for name in self.recipes.kept_disks(digest)]
        return sorted({*self.inventory.used_by(digest), *making, *kept})

    def all_users_of(self, digest: str) -> list[str]:
        """The same, to decide on what is removed. Raises: HypervisorDown while there may be VMs that nobody told of."""
        if not self.inventory.is_complete and self.recipes.has_disks():
            raise HypervisorDown(
                "the hypervisor has not told yet which VMs there are, and images may be under their disks; "
                "no image is removed before"
            )
        return self.users_of(digest)

    def _claimed(self, spec: VmSpec, digest: str, release_room: Release) -> Release:
        self.supply.promised[spec.name] = digest

        def release() -> None:
            self.supply.promised.pop(spec.name, None)
            release_room()

        return release

    def claim_create(self, spec: VmSpec, digest: str) -> Release:
        """Take the name and the room, at once; `digest` is empty while nobody knows it.

        Raises: VmExists, Forbidden, InsufficientResources.
        """
        making = self.supply.promised
        if spec.name in making or self.inventory.has_name(spec.name):
            raise VmExists(f"a VM named '{spec.name}' exists on this node; choose another name", vm=spec.name)
        if len(making) + len(list(self.inventory.records())) >= self.limits.max_vms:
            raise Forbidden(f"this node holds no more than {self.limits.max_vms} VMs (hypervisor.max_vms)")
        room = self.ledger.claim(_need(spec), self.inventory.running(), what=f"VM '{spec.name}'")
        return self._claimed(spec, digest, room)

    def owned(self, caller: Caller, vm: str) -> Record:
        """A VM that the caller may change. Raises: VmNotFound, Forbidden, HypervisorDown."""
        record = self.inventory.find(vm)
        if not caller.may_change(record.metadata.owner):
            raise Forbidden(
                f"VM '{record.domain.name}' belongs to {record.metadata.owner}; this needs the role admin",
                role_needed="admin",
            )
        if not self.hypervisor.connected:
            raise HypervisorDown("the hypervisor does not answer now; try again in a moment")
        return record

    def accelerator_for(self, asked: str) -> tuple[str, list[str]]:
        """What a VM will run on, and what its owner should know. Raises: Unsupported."""
        here = self.hypervisor.features.accelerator
        if asked == "kvm" and here != "kvm":
            if not self.limits.allow_emulation:
                raise Unsupported(
                    "KVM does not work here and hypervisor.allow_emulation is false; ask for hypervisor 'qemu'"
                )
            return "qemu", ["KVM does not work on this machine: the VM runs in emulation, which is slow"]
        return asked, []


def _need(spec: VmSpec) -> Room:
    return Room(memory=spec.memory, cpu=spec.cpu_cores, disk=spec.disk_size)


class LocalVms:
    """`VmService` for one caller."""

    def __init__(self, room: VmRoom, caller: Caller) -> None:
        self._room, self._caller = room, caller
        self._inventory = room.inventory

    async def list_vms(self) -> list[Vm]:
        return list(self._inventory.list())

    async def get_vm(self, vm: str) -> Vm:
        return self._inventory.get(vm)

    async def create_vm(self, spec: VmSpec) -> Vm:
        async def admit(run: Run) -> Release:
            room = self._room
            room.inventory.require_complete()
            if not room.hypervisor.connected:
                raise HypervisorDown("the hypervisor does not answer now; try again in a moment")
            accelerator, warnings = room.accelerator_for(spec.hypervisor)
            networks = room.hypervisor.features.networks
            if spec.network not in networks:
                known = ", ".join(networks)
                raise InvalidRequest(f"network: no network '{spec.network}' here; there are: {known}", path="network")
            if spec.cpu_cores > room.hypervisor.features.host_cpus * 16:
                raise InvalidRequest("cpu_cores: more than this machine can give one VM", path="cpu_cores")
            if spec.cloud_init is not None:
                await trio.to_thread.run_sync(check_cloud_init, spec.cloud_init)
            image = await room.supply.find(spec.image)
            if image is not None:
                check_disk_size(spec, image)
            metadata = VmMetadata(
                image=spec.image,
                digest=image.digest if image is not None else "",
                disk_size=spec.disk_size,
                network=spec.network,
                owner=run.principal,
                created_at=datetime.now(UTC).replace(microsecond=0),
                key=run.key,
                autostart=spec.autostart,
                labels=spec.labels,
                warnings=warnings,
            )
            check_quota(self._caller, room.inventory.records(), spec)
            run.notes = {"metadata": msgspec.to_builtins(metadata), "accelerator": accelerator}
            return room.claim_create(spec, metadata.digest)

        vm: Vm = await self._room.operations.run(self._caller, "create_vm", spec.name, spec, admit)
        return vm

    async def start_vm(self, vm: str) -> Vm:
        def claim(record: Record) -> Release:
            if record.active:
                return nothing_claimed
            need = Room(memory=record.domain.memory, cpu=record.domain.cpu_cores, disk=0)
            room = self._room
            return room.ledger.claim(need, self._inventory.running(), what=f"VM '{record.domain.name}' to run")

        return await self._mutate("start_vm", VmRequest(vm), claim)

    async def stop_vm(self, vm: str, force: bool = False, timeout: int | None = None) -> Vm:
        return await self._mutate("stop_vm", VmRequest(vm, force=force, timeout=timeout))

    async def restart_vm(self, vm: str, force: bool = False, timeout: int | None = None) -> Vm:
        return await self._mutate("restart_vm", VmRequest(vm, force=force, timeout=timeout))

    async def pause_vm(self, vm: str) -> Vm:
        return await self._mutate("pause_vm", VmRequest(vm), self._check("pause_vm"))

    async def resume_vm(self, vm: str) -> Vm:
        return await self._mutate("resume_vm", VmRequest(vm), self._check("resume_vm"))

    async def update_vm(self, vm: str, change: VmChange) -> Vm:
        return await self._mutate("update_vm", VmRequest(vm, change=change))

    async def delete_vm(self, vm: str, delete_disk: bool = True, force: bool = False) -> Vm:
        check = None if force else self._check("delete_vm")
        return await self._mutate("delete_vm", VmRequest(vm, delete_disk=delete_disk, force=force), check)

    @staticmethod
    def _check(kind: str) -> Callable[[Record], Release]:
        def check(record: Record) -> Release:
            require_state(kind, record.domain.name, record.domain.state)
            return nothing_claimed

        return check

    def _record(self, vm: str) -> Record:
        return self._room.owned(self._caller, vm)

    async def _mutate(self, kind: str, request: VmRequest, claim: Callable[[Record], Release] | None = None) -> Vm:
        async def admit(run: Run) -> Release:
            record = self._record(request.vm)
            run.notes = {
                "id": record.domain.id,
                "digest": record.metadata.digest,
                "vm": msgspec.to_builtins(self._inventory.view(record)),
            }
            return claim(record) if claim else nothing_claimed

        vm: Vm = await self._room.operations.run(self._caller, kind, request.vm, request, admit)
        return vm

    async def vm_ip(self, vm: str) -> VmAddresses:
        record = self._inventory.find(vm)
        if not record.active:
            return VmAddresses(ip=None, addresses=[], source="none")
        found = await self._observing().addresses(record.domain.id)
        if found.addresses:
            self._inventory.addresses[record.domain.id] = found.addresses[0]
        first = found.addresses[0] if found.addresses else None
        return VmAddresses(ip=first, addresses=list(found.addresses), source=found.source)

    async def vm_stats(self, vm: str) -> VmStats:
        record = self._inventory.find(vm)
        require_state("vm_stats", record.domain.name, record.domain.state)
        stats = await self._observing().stats(record.domain.id)
        fields = {name: getattr(stats, name) for name in stats.__dataclass_fields__}
        return VmStats(**fields, observed_at=datetime.now(UTC))

    async def vm_screenshot(self, vm: str) -> Blob:
        record = self._inventory.find(vm)
        require_state("vm_screenshot", record.domain.name, record.domain.state)
        return Blob(media_type="image/png", data=await self._observing().screenshot(record.domain.id))

    async def vm_log(self, vm: str, offset: int | None = None, limit: int = 65536) -> ConsoleLog:
        id = self._inventory.find(vm).domain.id
        path = self._room.recipes.directory(id) / "tty.log"
        return await trio.to_thread.run_sync(_read_log, path, offset, limit)

    def _observing(self) -> GuestInspection:
        if isinstance(self._room.hypervisor, GuestInspection):
            return self._room.hypervisor
        raise Unsupported(f"the hypervisor '{self._room.hypervisor.features.name}' cannot look into running VMs")

    async def list_forwards(self, vm: str) -> list[Forward]:
        return list(self._room.forwards.list(self._inventory.find(vm)))

    async def add_forward(self, vm: str, forward: ForwardSpec) -> Forward:
        check_bind(self._caller, forward)
        return await self._change_forwards("add_forward", vm, forward, self._room.forwards.check)

    async def remove_forward(self, vm: str, host_port: int) -> Forward:
        return await self._change_forwards("remove_forward", vm, host_port, self._room.forwards.find)

    async def _change_forwards(
        self, kind: str, vm: str, asked: Asked, check: Callable[[Record, Asked], object]
    ) -> Forward:
        async def admit(run: Run) -> Release:
            record = self._record(vm)
            check(record, asked)
            run.notes = {"id": record.domain.id}
            return nothing_claimed

        done: Forward = await self._room.operations.run(self._caller, kind, vm, asked, admit)
        return done


def _read_log(path: Path, offset: int | None, limit: int) -> ConsoleLog:
    """The user that runs QEMU owns the file, so it is opened with suspicion: no links, nothing but a plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ConsoleLog(text="", offset=0, next_offset=0)
    except OSError:
        raise VmNotFound("the VM's serial log cannot be read") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VmNotFound("the VM's serial log cannot be read")
        start = max(0, status.st_size - limit) if offset is None else min(max(0, offset), status.st_size)
        data = os.pread(descriptor, limit, start)
    finally:
        os.close(descriptor)
    return ConsoleLog(text=data.decode(errors="replace"), offset=start, next_offset=start + len(data))
