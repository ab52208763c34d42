"""What operations on VMs have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from ....protocols.access import Caller
from ....protocols.node import Resources
from ....protocols.vm import VmStatus
from ...hypervisor.port import DomainState
from ...journal.active import ActiveOperation
from ...journal.operation import JournalledOperation, Release, nothing_claimed
from ..context import VmContext
from ..lifecycle import ANY, require_state
from ..record import Record


class VmOperation(JournalledOperation[VmContext]):
    """An operation on a VM. `shown_as` is the status that the VM has meanwhile; None leaves its own."""

    shown_as: ClassVar[VmStatus | None] = None


class ExistingVmOperation(VmOperation):
    """An operation on a VM that exists, done under its lock. It returns the VM.

    `allowed_in` are the states that it accepts, `remedy` is what the error says in the others.
    """

    allowed_in: ClassVar[frozenset[DomainState]] = ANY
    remedy: ClassVar[str] = ""

    def locks(self, key: str, notes: Mapping[str, Any]) -> str:
        return str(notes.get("id", ""))

    async def admit(self, active: ActiveOperation, caller: Caller) -> Release:
        record = self.services.owned(caller, active.request.vm)
        self.check(record, active.request)
        active.notes = {
            "id": record.domain.id,
            "digest": record.metadata.digest,
            "vm": msgspec.to_builtins(self.services.inventory.view(record)),
        }
        return self.reserve(record)

    def check(self, record: Record, request: Any) -> None:
        """Refuse it. Raises: WrongState, and what a subclass refuses."""
        require_state(record.domain, self.allowed_in, self.remedy)

    def reserve(self, record: Record) -> Release:
        """Claim what the VM needs. Raises: InsufficientResources."""
        return nothing_claimed

    async def do(self, active: ActiveOperation) -> Any:
        id = active.notes["id"]
        async with self.services.locked(id, self.shown_as, force=getattr(active.request, "force", False)):
            await self.change(active, id)
        return self.services.inventory.get(id)

    @abstractmethod
    async def change(self, active: ActiveOperation, id: str) -> None:
        """Change the VM, whose lock is held."""


class VmMetadataOperation(ExistingVmOperation):
    """An operation that changes only what the domain's metadata keep: it does not wait for a guest that shuts down."""

    def locks(self, key: str, notes: Mapping[str, Any]) -> str:
        return ""

    async def do(self, active: ActiveOperation) -> Any:
        async with self.services.metadata_locked(active.notes["id"]):
            await self.change(active, active.notes["id"])
        return self.services.inventory.get(active.notes["id"])


class RunningVmOperation(ExistingVmOperation):
    """An operation after which the VM runs: what it will take is reserved before, also after a crash, and also when it
    runs already, since what comes before may stop it.
    """

    def reserve(self, record: Record) -> Release:
        vms, domain = self.services, record.domain
        need = Resources(memory=domain.memory, cpu=domain.cpu_cores, disk=0)
        return vms.admission.claim(domain.id, need, vms.inventory.running(), what=f"VM '{domain.name}' to run")

    def claim(self, active: ActiveOperation) -> Release:
        vm = active.notes["vm"]
        need = Resources(memory=vm["memory"], cpu=vm["cpu_cores"], disk=0)
        return self.services.admission.claim_again(active.notes["id"], need)
