"""Pause a VM: its virtual CPUs stop, its memory stays."""

from __future__ import annotations

from ....protocols.services import VmService
from ...journal.active import ActiveOperation
from ..lifecycle import ACTIVE, require_state
from .base import ExistingVmOperation


class PauseVm(ExistingVmOperation):
    method = VmService.pause_vm
    allowed_in = ACTIVE
    remedy = "start it first"

    async def change(self, active: ActiveOperation, id: str) -> None:
        record = await self.services.record(id)
        require_state(record.domain, self.allowed_in, self.remedy)
        await self.services.hypervisor.pause(id)
