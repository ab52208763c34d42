"""Create a VM from an image, and start it when asked to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio

from ....protocols.access import Caller
from ....protocols.errors import Forbidden, InvalidRequest, Unsupported, VmExists
from ....protocols.image import Image
from ....protocols.node import Resources
from ....protocols.services import VmService
from ....protocols.vm import CloudInit, Vm, VmSpec, VmStatus, settings_of
from ...hypervisor.port import DomainPlan
from ...journal.active import ActiveOperation
from ...journal.operation import Release
from ..expiry import expiry_after
from ..firmware import choose_firmware
from ..forwards import check_bind
from ..guest import build_seed, check_cloud_init
from ..image_resolver import check_disk_size
from ..quota import check_labels, check_quota
from ..record import VmMetadata, vm_id, vm_mac
from .base import VmOperation

MAX_CPUS_PER_HOST_CPU = 16


class CreateVm(VmOperation):
    method = VmService.create_vm
    shown_as = VmStatus.CREATING

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        vms, spec = self.services, _with_mac(active)
        vms.inventory.require_complete()
        vms.require_hypervisor()
        for forward in spec.forwards:
            check_bind(caller, forward)
        vms.forwards.check_new(spec.forwards)
        accelerator, warnings = self._accelerator(spec.hypervisor)
        self._check_features(spec)
        if spec.cloud_init is not None:
            await trio.to_thread.run_sync(check_cloud_init, spec.cloud_init)
        image = await vms.resolver.find(spec.image)
        if image is not None:
            check_disk_size(spec, image)
            await self._firmware(spec, image)
        spec = msgspec.structs.replace(spec, forwards=[*await vms.forwards.ports.choose(spec.forwards)])
        metadata = VmMetadata(
            image=spec.image,
            digest=image.digest if image is not None else "",
            disk_size=spec.disk_size,
            network=spec.network,
            owner=active.principal,
            created_at=datetime.now(UTC).replace(microsecond=0),
            key=active.key,
            forwards=spec.forwards,
            warnings=warnings,
            **{**settings_of(spec), "ttl": spec.ttl or None},
        )
        check_quota(caller, vms.inventory.records(), spec)
        check_labels(active.principal, vms.inventory.records(), spec.labels)
        active.notes = {"metadata": msgspec.to_builtins(metadata), "accelerator": accelerator}
        return self._claim_name_and_resources(vm_id(active.key), spec, metadata.digest)

    def _accelerator(self, asked: str) -> tuple[str, list[str]]:
        """What the VM will run on, and warnings for its owner. Raises: Unsupported."""
        if asked == "kvm" and self.services.hypervisor.features.accelerator != "kvm":
            if not self.services.limits.allow_emulation:
                raise Unsupported(
                    "KVM does not work here and hypervisor.allow_emulation is false; ask for hypervisor 'qemu'"
                )
            return "qemu", ["KVM does not work on this machine: the VM runs in emulation, which is slow"]
        return asked, []

    async def _firmware(self, spec: VmSpec, image: Image) -> str:
        """The firmware that the VM gets. Raises: InvalidRequest, Unsupported, ImageDamaged."""
        vms = self.services
        return choose_firmware(spec.firmware, image, await vms.images.boot_needs(image.digest), vms.hypervisor.features)

    def _check_features(self, spec: VmSpec) -> None:
        """Raises: InvalidRequest."""
        features = self.services.hypervisor.features
        if spec.network not in features.networks:
            known = ", ".join(features.networks)
            raise InvalidRequest(f"network: no network '{spec.network}' here; there are: {known}", path="network")
        if spec.cpu_cores > features.host_cpus * MAX_CPUS_PER_HOST_CPU:
            raise InvalidRequest("cpu_cores: more than this machine can give one VM", path="cpu_cores")

    def _claim_name_and_resources(self, id: str, spec: VmSpec, digest: str) -> Release:
        """`digest` is empty while the image is not here.

        Raises: VmExists, MacTaken, PortTaken, Forbidden, InsufficientResources.
        """
        vms = self.services
        making = vms.resolver.reserved
        if spec.name in making or vms.inventory.has_name(spec.name):
            raise VmExists(f"a VM named '{spec.name}' exists on this node; choose another name", vm=spec.name)
        vms.inventory.check_mac(spec.mac)
        vms.forwards.check_new(spec.forwards)
        if len(making) + len(list(vms.inventory.records())) >= vms.limits.max_vms:
            raise Forbidden(f"this node holds no more than {vms.limits.max_vms} VMs (hypervisor.max_vms)")
        vms.admission.check_size(
            Resources(memory=spec.memory, cpu=spec.cpu_cores, disk=spec.disk_size), what=f"VM '{spec.name}'"
        )
        resources = vms.admission.claim(id, _need(spec), vms.inventory.running(), what=f"VM '{spec.name}'")
        return self._claimed(spec, digest, resources)

    def claim(self, active: ActiveOperation) -> Release:
        metadata = msgspec.convert(active.notes["metadata"], VmMetadata)
        spec = msgspec.structs.replace(_with_mac(active), forwards=metadata.forwards)
        resources = self.services.admission.claim_again(vm_id(active.key), _need(spec))
        return self._claimed(spec, metadata.digest, resources)

    def _claimed(self, spec: VmSpec, digest: str, release_resources: Release) -> Release:
        reserved, creating = self.services.resolver.reserved, self.services.inventory.creating
        reserved[spec.name] = digest
        creating[spec.name] = spec

        def release() -> None:
            reserved.pop(spec.name, None)
            creating.pop(spec.name, None)
            release_resources()

        return release

    def locks(self, key: str, notes: Mapping[str, Any]) -> str:
        return vm_id(key)

    async def do(self, active: ActiveOperation) -> Vm:
        vms, spec, id = self.services, _with_mac(active), vm_id(active.key)
        metadata = msgspec.convert(active.notes["metadata"], VmMetadata)
        async with vms.locked(id, self.shown_as, _view(id, spec, metadata, active.notes["accelerator"])):
            if not metadata.digest:
                await active.step("image")
                image = await vms.resolver.ensure(spec, active.report, active.caller)
                metadata = msgspec.structs.replace(metadata, digest=image.digest)
            image = await vms.images.get_image(metadata.digest)
            metadata = msgspec.structs.replace(metadata, firmware=await self._firmware(spec, image))
            await self._make_files(active, id, metadata)
            await active.step("define")
            metadata = msgspec.structs.replace(metadata, expiry=expiry_after(metadata.ttl))
            await vms.hypervisor.define(self._plan(active, id, metadata))
            if spec.start:
                await active.step("start")
                await vms.boot(id)
                vms.forwards.require_open(await vms.record(id))
        return vms.inventory.get(id)

    async def _make_files(self, active: ActiveOperation, id: str, metadata: VmMetadata) -> None:
        vms, spec = self.services, active.request.spec
        await active.step("disk", metadata=msgspec.to_builtins(metadata))
        await trio.to_thread.run_sync(vms.files.make_directory, id)
        await vms.images.make_overlay(metadata.digest, vms.files.directory(id) / "disk.qcow2", spec.disk_size << 30)
        await active.step("seed")
        key = await trio.to_thread.run_sync(vms.node_key)
        content = await trio.to_thread.run_sync(build_seed, id, spec.name, spec.cloud_init or CloudInit(), key)
        await trio.to_thread.run_sync(vms.files.write_seed, id, content)

    def _plan(self, active: ActiveOperation, id: str, metadata: VmMetadata) -> DomainPlan:
        spec, directory = active.request.spec, self.services.files.directory(id)
        return DomainPlan(
            id=id,
            name=spec.name,
            cpu_cores=spec.cpu_cores,
            memory=spec.memory,
            accelerator=active.notes["accelerator"],
            directory=directory,
            disk=directory / "disk.qcow2",
            seed=directory / "seed.iso",
            network=spec.network,
            mac=_with_mac(active).mac,
            metadata=metadata.to_text(),
            firmware=metadata.firmware,
        )

    async def undo(self, active: ActiveOperation) -> None:
        id = vm_id(active.key)
        await self.services.undefine(id)
        await trio.to_thread.run_sync(self.services.files.remove, id)
        await self.services.inventory.refresh(id)


def _with_mac(active: ActiveOperation) -> VmSpec:
    """What was asked, with the MAC address that the VM gets."""
    spec: VmSpec = active.request.spec
    return msgspec.structs.replace(spec, mac=spec.mac or vm_mac(vm_id(active.key)))


def _need(spec: VmSpec) -> Resources:
    """A VM that is not started takes its disk only; memory and CPU are claimed by what makes it run."""
    memory, cpu = (spec.memory, spec.cpu_cores) if spec.start else (0, 0)
    return Resources(memory=memory, cpu=cpu, disk=spec.disk_size)


def _view(id: str, spec: VmSpec, metadata: VmMetadata, accelerator: str) -> Vm:
    """The VM while its domain is not defined yet."""
    return Vm(
        id=id,
        name=spec.name,
        status=VmStatus.CREATING,
        cpu_cores=spec.cpu_cores,
        memory=spec.memory,
        disk_size=spec.disk_size,
        hypervisor=accelerator,
        network=spec.network,
        mac=spec.mac,
        vnc_port=None,
        created_at=metadata.created_at,
        image=metadata.image,
        owner=metadata.owner,
        firmware=metadata.firmware,
        observed_at=datetime.now(UTC),
        warnings=metadata.warnings,
        **settings_of(metadata),
    )
