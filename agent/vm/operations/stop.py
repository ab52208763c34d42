"""Stop a VM: ask its guest to shut down, or power it off by force."""

from __future__ import annotations

from functools import partial

import trio

from ....protocols.errors import DeadlineExceeded, OperationCancelled, WrongState
from ....protocols.services import VmService
from ....protocols.vm import VmStatus
from ...hypervisor.port import DomainState
from ...journal.active import ActiveOperation
from ..context import VmContext
from ..record import Record
from .base import ExistingVmOperation

SHUTDOWN_REPEATED_EVERY = 5.0
"""Seconds between two shutdown requests to one guest."""


class StopVm(ExistingVmOperation):
    method = VmService.stop_vm
    shown_as = VmStatus.STOPPING
    runs_on_full_disk = True

    async def change(self, active: ActiveOperation, id: str) -> None:
        await stop(self.services, active, id)


async def stop(vms: VmContext, active: ActiveOperation, id: str) -> None:
    """Stop a VM as the `force` and `timeout` of the request say; its lock is held.

    Raises: WrongState when it is paused or an operation with force overrules it, DeadlineExceeded when the guest does
    not shut down.
    """
    record = await vms.record(id)
    if not record.active:
        return
    _refuse_outdated(record, active)
    if active.request.force:
        await active.step("destroy")
        await vms.hypervisor.destroy(id)
        return
    if record.domain.state is DomainState.PAUSED:
        raise WrongState(f"VM '{record.domain.name}' is paused and cannot shut down; resume it first, or force it off")
    await active.step("shutdown")
    timeout = active.request.timeout or vms.limits.stop_timeout
    if not await vms.wait_for_guest(id, timeout, partial(_request_shutdown, vms)):
        raise DeadlineExceeded(
            f"VM '{record.domain.name}' did not shut down within {timeout} s; its guest may not listen. "
            "Give it a longer timeout, or force it off",
            vm=record.domain.name, timeout=timeout,
        )  # fmt: skip


def _refuse_outdated(record: Record, active: ActiveOperation) -> None:
    """Refuse the stop of a former life of the agent if the VM was started after it. Raises: OperationCancelled."""
    started_at = record.domain.started_at
    if active.is_recovered and started_at is not None and started_at.timestamp() > active.created_at:
        raise OperationCancelled(f"VM '{record.domain.name}' was started after this was asked; not done any more")


async def _request_shutdown(vms: VmContext, id: str) -> None:
    """Request a shutdown until the VM is off. A guest that is still booting misses the first request."""
    while True:
        await vms.hypervisor.shutdown(id)
        with trio.move_on_after(SHUTDOWN_REPEATED_EVERY):
            await vms.inventory.wait_until(id, lambda record: record is None or not record.active)
            return
        await vms.inventory.refresh(id)
