"""Start a VM."""

from __future__ import annotations

from ....protocols.services import VmService
from ....protocols.vm import VmStatus
from ...journal.active import ActiveOperation
from .base import RunningVmOperation


class StartVm(RunningVmOperation):
    method = VmService.start_vm
    shown_as = VmStatus.STARTING

    async def change(self, active: ActiveOperation, id: str) -> None:
        await active.step("start")
        await self.services.boot(id)
