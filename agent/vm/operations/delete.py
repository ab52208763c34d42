"""Delete a VM, with its disk or without."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from ....protocols.errors import DeadlineExceeded, InsufficientResources, Unavailable
from ....protocols.services import VmService
from ....protocols.vm import Vm, VmStatus
from ...files import disk_errors_named
from ...journal.active import ActiveOperation
from ..lifecycle import ACTIVE, ANY, require_state
from ..record import Record
from .base import ExistingVmOperation

RETRIED_FOR, RETRY_EVERY = 30.0, 0.5
"""Seconds in which a hypervisor that is away may come back in the middle of a deletion."""


class DeleteVm(ExistingVmOperation):
    """Forward only: once the domain is gone there is nothing to go back to."""

    method = VmService.delete_vm
    shown_as = VmStatus.DELETING
    runs_on_full_disk = True
    allowed_in = ANY - ACTIVE
    remedy = "stop it first, or force it"

    def check(self, record: Record, request: Any) -> None:
        if not request.force:
            require_state(record.domain, self.allowed_in, self.remedy)

    async def do(self, active: ActiveOperation) -> Vm:
        async with self.services.locked(active.notes["id"], self.shown_as, force=active.request.force):
            await self.change(active, active.notes["id"])
        last = msgspec.convert(active.notes["vm"], Vm)
        return msgspec.structs.replace(last, status=VmStatus.STOPPED, vnc_port=None, uptime=None, ip=None, ports=[])

    async def change(self, active: ActiveOperation, id: str) -> None:
        vms = self.services
        if record := await vms.inventory.refresh(id):
            self.check(record, active.request)
            await active.step("destroy")
            await vms.hypervisor.destroy(id)
        await active.step("files")
        try:
            with disk_errors_named("the VM's files"):
                if active.request.delete_disk:
                    await trio.to_thread.run_sync(vms.files.remove, id)
                else:
                    await trio.to_thread.run_sync(vms.files.keep_disk, id, active.notes)
            await active.step("undefine")
            await self._undefine(id)
        except (Unavailable, DeadlineExceeded, InsufficientResources) as error:
            raise type(error)(
                f"a part of VM '{active.notes['vm']['name']}' is deleted; delete it again when this is mended: "
                f"{error.message}", **error.details,
            ) from None  # fmt: skip

    async def _undefine(self, id: str) -> None:
        """Undefine the domain; a hypervisor that is away for a moment is waited for, since the files are gone.

        Raises: Unavailable, DeadlineExceeded.
        """
        deadline = trio.current_time() + RETRIED_FOR
        while True:
            try:
                await self.services.undefine(id)
                return
            except (Unavailable, DeadlineExceeded):
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(RETRY_EVERY)
