"""Resume a paused VM."""

from __future__ import annotations

from ....protocols.services import VmService
from ...journal.active import ActiveOperation
from ..lifecycle import ACTIVE, require_state
from .base import ExistingVmOperation


class ResumeVm(ExistingVmOperation):
    method = VmService.resume_vm
    allowed_in = ACTIVE
    remedy = "start it instead"

    async def change(self, active: ActiveOperation, id: str) -> None:
        record = await self.services.record(id)
        require_state(record.domain, self.allowed_in, self.remedy)
        await self.services.hypervisor.resume(id)
