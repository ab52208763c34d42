"""Images made of VMs: of one that is off its disk file, of one that runs its disk at one instant while it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
import trio

from ...protocols.errors import InvalidRequest, Unsupported, WrongState
from ...protocols.image import Image
from ..hypervisor.port import DiskExport
from ..images.port import Export, ImageStore, Overlay
from ..journal.run import Run
from .lifecycle import require_state
from .local import VmRoom
from .record import Record


class CaptureRequest(msgspec.Struct, frozen=True):
    """Of which VM an image is made, how it is called, and whether it is to be nobody's in particular."""

    vm: str
    name: str
    reset_identity: bool = False


@dataclass(slots=True)
class Captures:
    """How captures are done; two of one VM follow each other."""

    store: ImageStore
    vms: VmRoom
    turns: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)

    async def make(self, run: Run) -> Image:
        id = run.notes["id"]
        async with self.turns.setdefault(id, trio.Lock()):
            record = await self.vms.recipes.record(id)
            if record.active:
                return await self._of_running(run, record)
            async with self.vms.recipes.working_on(id, run.kind):
                # Nobody can start it from here on; until here somebody could.
                record = await self.vms.recipes.record(id)
                if not record.active:
                    return await self._of_stopped(run, record)
            return await self._of_running(run, record)

    async def _of_stopped(self, run: Run, record: Record) -> Image:
        require_state(run.kind, record.domain.name, record.domain.state)
        disk = Overlay(self._directory(record) / "disk.qcow2", record.metadata.digest)
        return await self._keep(run, record, disk)

    async def _of_running(self, run: Run, record: Record) -> Image:
        """Its lock is not held: whoever wants to stop it need not wait, and the capture then fails."""
        hypervisor, id = self.vms.hypervisor, record.domain.id
        if not isinstance(hypervisor, DiskExport):
            raise Unsupported(f"the hypervisor '{hypervisor.features.name}' cannot read a running VM's disk; stop it")
        try:
            async with hypervisor.export_disk(id, self._directory(record)) as view:
                return await self._keep(run, record, Export(view.socket, view.export, record.metadata.digest))
        except InvalidRequest:
            now = await self.vms.recipes.record(id)
            if now.active and now.domain.started_at == record.domain.started_at:
                raise
            raise WrongState(f"VM '{record.domain.name}' stopped while its disk was read; try again") from None

    async def _keep(self, run: Run, record: Record, disk: Overlay | Export) -> Image:
        size, source = record.metadata.disk_size << 30, f"VM {record.domain.name}"
        asked: CaptureRequest = run.request
        return await self.store.add_disk(
            asked.name, disk, size, report=run.report, source=source, reset=asked.reset_identity
        )

    def _directory(self, record: Record) -> Path:
        return self.vms.recipes.directory(record.domain.id)
