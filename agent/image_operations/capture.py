"""Make an image of a VM's disk: of one that is off its disk file, of one that runs its disk at one instant."""

from __future__ import annotations

import trio

from ...protocols.access import LOCAL, Caller
from ...protocols.errors import ImageExists, ImageNotFound, InvalidRequest, Unsupported, WrongState
from ...protocols.events import ImageAdded
from ...protocols.image import Image
from ...protocols.image_service import ImageService
from ..hypervisor.port import DiskExport, DomainState
from ..images.port import Export, Origin, Overlay, Requester
from ..images.tag_index import parse_new_name
from ..journal.active import ActiveOperation
from ..journal.operation import Release, nothing_claimed
from ..vm.lifecycle import ANY, require_state
from ..vm.record import Record
from .context import ImageOperation

ALLOWED_IN = ANY - {DomainState.SUSPENDED}


class CaptureImage(ImageOperation):
    method = ImageService.capture_image

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        record = self.services.vms.owned(caller, active.request.vm)
        _require_state(record)
        await self._require_new(active.request.name)
        active.notes = {"id": record.domain.id}
        return nothing_claimed

    async def _require_new(self, name: str) -> None:
        """Raises: ImageExists, InvalidRequest for what is no new image's name."""
        try:
            await self.services.store.get_image(str(parse_new_name(name)))
        except ImageNotFound:
            return
        raise ImageExists(f"'{name}' is an image already; remove it first or choose another name")

    async def do(self, active: ActiveOperation) -> Image:
        id = active.notes["id"]
        async with self.services.capture_locks.setdefault(id, trio.Lock()):
            image = await self._capture(active, id)
        self.services.events.publish(ImageAdded.of(image), image.owner or LOCAL)
        return image

    async def _capture(self, active: ActiveOperation, id: str) -> Image:
        vms = self.services.vms
        record = await vms.record(id)
        if not record.active:
            async with vms.locked(id):
                # With the lock held nobody can start it; since the look above somebody may have.
                record = await vms.record(id)
                if not record.active:
                    return await self._of_stopped(active, record)
        return await self._of_running(active, record)

    async def _of_stopped(self, active: ActiveOperation, record: Record) -> Image:
        _require_state(record)
        # Not a name of ours: a snapshot or a block copy by virsh moves the disk.
        disk = await self.services.vms.hypervisor.disk_path(record.domain.id)
        return await self._add(active, record, Overlay(disk, record.metadata.digest))

    async def _of_running(self, active: ActiveOperation, record: Record) -> Image:
        """The VM's lock is not held: who wants to stop it need not wait, and the capture then fails."""
        vms, id = self.services.vms, record.domain.id
        hypervisor = vms.hypervisor
        if not isinstance(hypervisor, DiskExport):
            raise Unsupported(f"the hypervisor '{hypervisor.features.name}' cannot read a running VM's disk; stop it")
        try:
            async with hypervisor.export_disk(id, vms.files.directory(id)) as view:
                return await self._add(active, record, Export(view.socket, view.export, record.metadata.digest))
        except InvalidRequest:
            now = await vms.record(id)
            if now.active and now.domain.started_at == record.domain.started_at:
                raise
            raise WrongState(f"VM '{record.domain.name}' stopped while its disk was read; try again") from None

    async def _add(self, active: ActiveOperation, record: Record, disk: Overlay | Export) -> Image:
        size, asked = record.metadata.disk_size << 30, active.request
        origin = Origin(f"VM {record.domain.name}", requester=Requester(active.caller))
        return await self.services.store.add_disk(
            asked.name, disk, size, report=active.report, origin=origin, reset=asked.reset_identity
        )


def _require_state(record: Record) -> None:
    require_state(record.domain, ALLOWED_IN, "its disk is not whole; start it first")
