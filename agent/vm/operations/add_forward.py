"""Forward a port of the node to a VM."""

from __future__ import annotations

from typing import Any

import msgspec

from ....protocols.access import Caller
from ....protocols.services import VmService
from ....protocols.vm import Forward, ForwardSpec
from ...journal.active import ActiveOperation
from ...journal.operation import Release
from ..forwards import check_bind
from ..record import Record
from .base import VmMetadataOperation


class AddForward(VmMetadataOperation):
    method = VmService.add_forward

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        check_bind(caller, active.request.forward)
        return await super().admit(active, caller)

    def check(self, record: Record, request: Any) -> None:
        self.services.forwards.check(record, request.forward)

    async def do(self, active: ActiveOperation) -> Forward:
        id = active.notes["id"]
        async with self.services.metadata_locked(id):
            await self.change(active, id)
            record = await self.services.record(id)
            await self.services.forwards.reconcile(record)
            await self.services.addresses.reconcile(record)
        return self.services.forwards.view(record, _chosen(active))

    async def change(self, active: ActiveOperation, id: str) -> None:
        """Choose the port, write it down, then keep it: run again after a crash, it is the same port."""
        record, forwards = await self.services.record(id), self.services.forwards
        spec = _chosen(active)
        if spec in record.metadata.forwards:
            return
        forwards.check(record, spec)
        if not spec.host_port:
            [spec] = await forwards.ports.choose([spec])
        with forwards.claimed(record, spec):
            await forwards.open(record, spec)
            try:
                await active.step("keep", port=spec.host_port)
                await forwards.keep(record, [*record.metadata.forwards, spec])
            except BaseException:
                forwards.abandon(record, spec)
                raise
            await self.services.record(id)  # the inventory has it before the claim ends


def _chosen(active: ActiveOperation) -> ForwardSpec:
    """What was asked, with the host port that was chosen."""
    spec: ForwardSpec = active.request.forward
    return msgspec.structs.replace(spec, host_port=active.notes.get("port", spec.host_port))
