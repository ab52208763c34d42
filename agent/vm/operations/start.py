"""Start a VM."""

from __future__ import annotations

from ....protocols.services import VmService
from ....protocols.vm import VmStatus
from ...hypervisor.port import DomainState
from ...journal.active import ActiveOperation
from .base import RunningVmOperation


class StartVm(RunningVmOperation):
    method = VmService.start_vm
    shown_as = VmStatus.STARTING

    async def change(self, active: ActiveOperation, id: str) -> None:
        record = await self.services.record(id)
        await active.step("start")
        if record.domain.state is DomainState.PAUSED:
            await self.services.hypervisor.resume(id)
        else:
            await self.services.boot(id)
