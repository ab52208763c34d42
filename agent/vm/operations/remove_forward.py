"""End a port forward of a VM."""

from __future__ import annotations

import msgspec

from ....protocols.access import Caller
from ....protocols.services import VmService
from ....protocols.vm import Forward, ForwardSpec
from ...journal.active import ActiveOperation
from ...journal.operation import Release, nothing_claimed
from ..forwards import forward_view
from .base import VmMetadataOperation


class RemoveForward(VmMetadataOperation):
    method = VmService.remove_forward

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        record = self.services.owned(caller, active.request.vm)
        spec = self.services.forwards.find(record, active.request.host_port)
        active.notes = {"id": record.domain.id, "forward": msgspec.to_builtins(spec)}
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Forward:
        id = active.notes["id"]
        async with self.services.metadata_locked(id):
            await self.change(active, id)
        noted = active.notes.get("forward") or {"host_port": active.request.host_port, "guest_port": 1}
        return forward_view(ForwardSpec(**noted), active=False)

    async def change(self, active: ActiveOperation, id: str) -> None:
        forwards, record = self.services.forwards, await self.services.record(id)
        left = [spec for spec in record.metadata.forwards if spec.host_port != active.request.host_port]
        await forwards.keep(record, left)
        left_record = await self.services.record(id)
        await forwards.reconcile(left_record)
        await self.services.addresses.reconcile(left_record)
