"""How each mutation of a VM is done: idempotent steps that a restart can run again, and how they are taken back.

Every recipe works under its VM's lock, so that two operations on one VM follow each other.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import trio

from ...protocols.errors import DeadlineExceeded, InsufficientResources, VmNotFound, WrongState
from ...protocols.vm import CloudInit, Vm, VmChange, VmSpec, VmStatus
from ..files import atomic_write
from ..hypervisor.port import DomainPlan, DomainState, Hypervisor
from ..images.port import ImageStore
from ..journal.run import Run
from .forwards import Forwards
from .guest import build_seed
from .inventory import Inventory
from .lifecycle import require_state
from .record import Record, VmMetadata, mac_of, vm_id
from .supply import Supply

SHUTDOWN_REPEATED_EVERY = 5.0
KEPT_DISK = "kept.json"
# A start whose QEMU is killed is begun a second time.
STARTS_GIVEN_UP = 2


class VmRequest(msgspec.Struct, frozen=True):
    """What an operation on a VM that exists was asked."""

    vm: str
    force: bool = False
    timeout: int | None = None
    delete_disk: bool = True
    change: VmChange | None = None


@dataclass(slots=True)
class VmRecipes:
    """What the recipes work with. `own` gives a path to the user that runs QEMU."""

    hypervisor: Hypervisor
    images: ImageStore
    supply: Supply
    inventory: Inventory
    vms: Path
    own: Callable[[Path], None]
    forwards: Forwards
    stop_timeout: int
    locks: WeakValueDictionary[str, trio.Lock] = field(default_factory=WeakValueDictionary)

    async def _start(self, id: str) -> None:
        """Boot, and open the ports that lead to the guest before anybody is told that it runs."""
        await self.hypervisor.start(id)
        if record := await self.inventory.refresh(id):
            await self.forwards.reconcile(record)

    @asynccontextmanager
    async def working_on(self, id: str, kind: str, making: Vm | None = None) -> AsyncIterator[None]:
        lock = self.locks.setdefault(id, trio.Lock())
        async with lock:
            with self.inventory.at_work(id, kind, making):
                yield
                await self.inventory.refresh(id)

    def directory(self, id: str) -> Path:
        return self.vms / id

    def kept_disks(self, digest: str) -> list[str]:
        """The names of deleted VMs whose disks were kept and stand on an image."""
        notes = [msgspec.json.decode(file.read_bytes()) for file in self.vms.glob(f"*/{KEPT_DISK}")]
        return [note["vm"]["name"] for note in notes if note["digest"] == digest]

    def has_disks(self) -> bool:
        """Whether any VM has a folder here, whatever the hypervisor says."""
        return any(not (folder / KEPT_DISK).exists() for folder in self.vms.iterdir())

    async def create(self, run: Run) -> Vm:
        spec: VmSpec = run.request
        id = vm_id(run.key)
        metadata = msgspec.convert(run.notes["metadata"], VmMetadata)
        async with self.working_on(id, run.kind, self._making(id, spec, metadata, run)):
            if not metadata.digest:
                await run.step("image")
                image = await self.supply.bring(spec, run.report)
                metadata = msgspec.structs.replace(metadata, digest=image.digest)
            directory = self.directory(id)
            await run.step("disk", metadata=msgspec.to_builtins(metadata))
            await trio.to_thread.run_sync(self._make_directory, directory)
            disk, seed = directory / "disk.qcow2", directory / "seed.iso"
            await self.images.make_overlay(metadata.digest, disk, spec.disk_size << 30)
            await run.step("seed")
            content = await trio.to_thread.run_sync(build_seed, id, spec.name, spec.cloud_init or CloudInit())
            await trio.to_thread.run_sync(self._write, seed, content)
            await run.step("define")
            await self.hypervisor.define(
                DomainPlan(
                    id=id,
                    name=spec.name,
                    cpu_cores=spec.cpu_cores,
                    memory=spec.memory,
                    accelerator=run.notes["accelerator"],
                    directory=directory,
                    disk=disk,
                    seed=seed,
                    network=spec.network,
                    mac=mac_of(id),
                    metadata=metadata.to_text(),
                )
            )
            if spec.start:
                await run.step("start")
                await self._start(id)
        return self.inventory.get(id)

    async def undo_create(self, run: Run) -> None:
        id = vm_id(run.key)
        await self._end(id)
        await trio.to_thread.run_sync(_remove_tree, self.directory(id))
        await self.inventory.refresh(id)

    async def _end(self, id: str) -> None:
        """Undefine it; a start that was given up, and comes up in its thread only now, is ended as well."""
        for _ in range(STARTS_GIVEN_UP):
            await self.hypervisor.destroy(id)
            with suppress(WrongState):
                await self.hypervisor.undefine(id)
                return
        await self.hypervisor.destroy(id)
        await self.hypervisor.undefine(id)

    async def start(self, run: Run) -> Vm:
        id = run.notes["id"]
        async with self.working_on(id, run.kind):
            await run.step("start")
            await self._start(id)
        return self.inventory.get(id)

    async def stop(self, run: Run) -> Vm:
        id = run.notes["id"]
        async with self.working_on(id, run.kind):
            await self._stop(run, id)
        return self.inventory.get(id)

    async def restart(self, run: Run) -> Vm:
        id = run.notes["id"]
        async with self.working_on(id, run.kind):
            if run.step_name != "start":
                await self._stop(run, id)
            await run.step("start")
            await self._start(id)
        return self.inventory.get(id)

    async def _stop(self, run: Run, id: str) -> None:
        request: VmRequest = run.request
        record = await self.record(id)
        if not record.active:
            return
        if request.force:
            await run.step("destroy")
            await self.hypervisor.destroy(id)
            return
        if record.domain.state is DomainState.PAUSED:
            raise WrongState(f"VM '{record.domain.name}' is paused and cannot shut down; resume it first, or use force")
        await run.step("shutdown")
        timeout = request.timeout or self.stop_timeout
        with trio.move_on_after(timeout) as patience:
            await self._ask_to_stop(id)
        if patience.cancelled_caught:
            raise DeadlineExceeded(
                f"VM '{record.domain.name}' did not shut down within {timeout} s; its guest may not listen. "
                "Wait longer with timeout, or use force to pull the plug",
                vm=record.domain.name, timeout=timeout,
            )  # fmt: skip

    async def _ask_to_stop(self, id: str) -> None:
        """A guest that is still booting misses the first request, so it is asked again."""
        while True:
            await self.hypervisor.shutdown(id)
            with trio.move_on_after(SHUTDOWN_REPEATED_EVERY):
                await self.inventory.wait_until(id, lambda record: record is None or not record.active)
                return
            await self.inventory.refresh(id)

    async def pause(self, run: Run) -> Vm:
        return await self._turn(run, self.hypervisor.pause)

    async def resume(self, run: Run) -> Vm:
        return await self._turn(run, self.hypervisor.resume)

    async def _turn(self, run: Run, order: Callable[[str], Awaitable[None]]) -> Vm:
        """What is one order to the hypervisor, allowed or not by the VM's state."""
        id = run.notes["id"]
        async with self.working_on(id, run.kind):
            record = await self.record(id)
            require_state(run.kind, record.domain.name, record.domain.state)
            await order(id)
        return self.inventory.get(id)

    async def update(self, run: Run) -> Vm:
        id, change = run.notes["id"], run.request.change
        async with self.working_on(id, run.kind):
            record = await self.record(id)
            wanted = {name: value for name in ("autostart", "labels") if (value := getattr(change, name)) is not None}
            await self.hypervisor.set_metadata(id, msgspec.structs.replace(record.metadata, **wanted).to_text())
        return self.inventory.get(id)

    async def delete(self, run: Run) -> Vm:
        """Forward only: once the domain is gone there is nothing to go back to."""
        id, request = run.notes["id"], run.request
        async with self.working_on(id, run.kind):
            if record := await self.inventory.refresh(id):
                if record.active and not request.force:
                    require_state(run.kind, record.domain.name, record.domain.state)
                await run.step("destroy")
                await self.hypervisor.destroy(id)
            await run.step("files")
            await trio.to_thread.run_sync(self._clear, self.directory(id), request.delete_disk, run.notes)
            await run.step("undefine")
            await self._end(id)
        last = msgspec.convert(run.notes["vm"], Vm)
        return msgspec.structs.replace(last, status=VmStatus.STOPPED, vnc_port=None, uptime=None, ip=None)

    async def record(self, id: str) -> Record:
        """As the hypervisor sees it now. Raises: VmNotFound."""
        if record := await self.inventory.refresh(id):
            return record
        raise VmNotFound(f"Virtual machine '{id}' not found", vm=id)

    def _making(self, id: str, spec: VmSpec, metadata: VmMetadata, run: Run) -> Vm:
        return Vm(
            id=id,
            name=spec.name,
            status=VmStatus.CREATING,
            cpu_cores=spec.cpu_cores,
            memory=spec.memory,
            disk_size=spec.disk_size,
            hypervisor=run.notes["accelerator"],
            network=spec.network,
            vnc_port=None,
            created_at=metadata.created_at,
            image=metadata.image,
            owner=metadata.owner,
            observed_at=datetime.now(UTC),
            labels=spec.labels,
            warnings=metadata.warnings,
        )

    def _make_directory(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.own(directory)

    def _write(self, path: Path, content: bytes) -> None:
        try:
            atomic_write(path, content)
        except OSError as error:
            raise InsufficientResources(f"cannot write {path.name}: {error.strerror}") from None
        self.own(path)

    @staticmethod
    def _clear(directory: Path, delete_disk: bool, notes: dict[str, Any]) -> None:
        """Without its disk a VM leaves nothing; a disk that is kept has a note beside it that says what it was."""
        if delete_disk:
            _remove_tree(directory)
        elif directory.is_dir():
            atomic_write(directory / KEPT_DISK, msgspec.json.encode(notes))
            for path in directory.iterdir():
                if path.name not in {"disk.qcow2", KEPT_DISK}:
                    path.unlink(missing_ok=True)


def _remove_tree(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
