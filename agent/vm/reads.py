"""The VMs of this node, as one caller may read them: the part of `VmService` that changes nothing."""

from __future__ import annotations

import codecs
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import trio

from ...protocols.access import Caller, Role
from ...protocols.errors import Forbidden, Unsupported, VmNotFound
from ...protocols.vm import Blob, ConsoleLog, Forward, Vm, VmAddresses, VmStats
from ..hypervisor.port import GuestInspection
from .context import VmContext
from .lifecycle import require_active
from .record import Record


class VmReads:
    """The reads of `VmService` for one caller."""

    def __init__(self, vms: VmContext, caller: Caller) -> None:
        self._vms, self._caller = vms, caller
        self._inventory = vms.inventory

    async def list_vms(self) -> list[Vm]:
        return list(self._inventory.list())

    async def get_vm(self, vm: str) -> Vm:
        return self._inventory.get(vm)

    async def vm_ip(self, vm: str) -> VmAddresses:
        record = self._inventory.find(vm)
        if not record.active:
            return VmAddresses(ip=None, addresses=[], source="none")
        found = await self._inspection().addresses(record.domain.id)
        self._inventory.learnt(record.domain.id, found)
        seen = self._inventory.view(record)
        ip = seen.ip if found.addresses or self._inventory.has_booted(record) else None
        return VmAddresses(ip=ip, addresses=list(found.addresses), source=found.source, guest_ip=seen.guest_ip)

    async def vm_stats(self, vm: str) -> VmStats:
        record = self._inventory.find(vm)
        require_active(record.domain)
        stats = await self._inspection().stats(record.domain.id)
        fields = {name: getattr(stats, name) for name in stats.__dataclass_fields__}
        return VmStats(**fields, observed_at=datetime.now(UTC))

    async def vm_screenshot(self, vm: str) -> Blob:
        record = self._own(vm)
        require_active(record.domain)
        return Blob(media_type="image/png", data=await self._inspection().screenshot(record.domain.id))

    async def vm_log(self, vm: str, offset: int | None = None, limit: int = 65536) -> ConsoleLog:
        id = self._own(vm).domain.id
        path = self._vms.files.directory(id) / "tty.log"
        return await trio.to_thread.run_sync(_read_log, path, offset, limit)

    def _own(self, vm: str) -> Record:
        """A VM into whose guest the caller may look: its own, or any for an admin. Raises: VmNotFound, Forbidden."""
        record = self._inventory.find(vm)
        if not self._caller.may_look_into(record.metadata.owner):
            raise Forbidden(
                f"VM '{record.domain.name}' belongs to {record.metadata.owner}; "
                "its serial log and its screen need the role admin",
                role_needed=str(Role.ADMIN),
            )
        return record

    def _inspection(self) -> GuestInspection:
        if isinstance(self._vms.hypervisor, GuestInspection):
            return self._vms.hypervisor
        raise Unsupported(f"the hypervisor '{self._vms.hypervisor.features.name}' cannot look into running VMs")

    async def list_forwards(self, vm: str) -> list[Forward]:
        return list(self._vms.forwards.list(self._inventory.find(vm)))


def _read_log(path: Path, offset: int | None, limit: int) -> ConsoleLog:
    """Read a part of a serial log. QEMU's user owns the file, so no link is followed, and only a plain file is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ConsoleLog(text="", offset=0, next_offset=0)
    except OSError:
        raise VmNotFound("the VM's serial log cannot be read") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VmNotFound("the VM's serial log cannot be read")
        start = max(0, status.st_size - limit) if offset is None else offset
        if start > status.st_size:  # it was shortened, or is that of another start: what is there was not read
            start = 0
        data = os.pread(descriptor, limit, start)
    finally:
        os.close(descriptor)
    text, read = _decode(data)
    return ConsoleLog(text=text, offset=start, next_offset=start + read)


def _decode(data: bytes) -> tuple[str, int]:
    """Return text, and of how many bytes: the beginning of a character is left for the next part, unless it is all."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, rest = decoder.decode(data), decoder.getstate()[0]
    return (text, len(data) - len(rest)) if text or not data else (decoder.decode(b"", final=True), len(data))
