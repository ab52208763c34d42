"""Change what a VM is kept with."""

from __future__ import annotations

import msgspec

from ....protocols.services import VmService
from ...journal.active import ActiveOperation
from ..expiry import expiry_after
from ..quota import check_labels
from .base import VmMetadataOperation


class UpdateVm(VmMetadataOperation):
    method = VmService.update_vm

    async def change(self, active: ActiveOperation, id: str) -> None:
        record, change = await self.services.record(id), active.request.change
        wanted = {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not None}
        if change.labels:
            others = [other for other in self.services.inventory.records() if other.domain.id != id]
            check_labels(record.metadata.owner, others, change.labels)
        if "ttl" in wanted:
            wanted |= {"ttl": change.ttl or None, "expiry": expiry_after(change.ttl)}
        metadata = msgspec.structs.replace(record.metadata, **wanted)
        await self.services.hypervisor.set_metadata(id, metadata.to_text())
