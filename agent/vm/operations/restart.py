"""Stop a VM, then start it."""

from __future__ import annotations

from ....protocols.services import VmService
from ....protocols.vm import VmStatus
from ...journal.active import ActiveOperation
from .base import RunningVmOperation
from .stop import stop


class RestartVm(RunningVmOperation):
    method = VmService.restart_vm
    shown_as = VmStatus.STOPPING

    async def change(self, active: ActiveOperation, id: str) -> None:
        if active.step_name != "start":
            await stop(self.services, active, id)
        await active.step("start")
        await self.services.boot(id)
