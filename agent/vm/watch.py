"""What the node does by itself for its VMs.

It starts some after a boot, resumes those that a full disk paused when there is space again, and keeps forwards and
addresses right.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from ...protocols.errors import TwinshareError
from ...protocols.events import HypervisorBack, HypervisorLost, VmDiskFull
from ..events import EventLog
from ..hypervisor.port import Change, ChangeKind, DomainState, GuestInspection, Hypervisor
from ..state import State
from .context import VmContext
from .inventory import Inventory

log = structlog.get_logger(__name__)

LOOK_EVERY = 2.0
FREE_TO_RESUME = 64 << 20
MAX_CHANGES = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Watch:
    """`run` never ends; it is fed by the inventory's notices."""

    def __init__(self, vms: VmContext, events: EventLog, data_dir: Path) -> None:
        self._vms, self._events, self._data_dir = vms, events, data_dir
        self._send, self._receive = trio.open_memory_channel[str](MAX_CHANGES)
        self._is_down = False
        vms.inventory.on_change = self._note
        vms.inventory.on_notice = self._notice

    @property
    def _inventory(self) -> Inventory:
        return self._vms.inventory

    @property
    def _hypervisor(self) -> Hypervisor:
        return self._vms.hypervisor

    def _note(self, id: str) -> None:
        try:
            self._send.send_nowait(id)
        except trio.WouldBlock:
            log.warning("too many changes at once; the next resync looks at all VMs")

    def _notice(self, change: Change) -> None:
        if change.kind is ChangeKind.DISK_FULL and change.id is not None:
            self._events.publish(VmDiskFull(id=change.id))
        elif change.kind is ChangeKind.DOWN:
            self._is_down = True
            self._events.publish(HypervisorLost())
        elif change.kind is ChangeKind.RESYNC and self._is_down and self._hypervisor.connected:
            self._is_down = False
            self._events.publish(HypervisorBack())
        elif change.kind is ChangeKind.AGENT_UP and change.id is not None:
            self._note(change.id)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._resume_after_full_disk)
            nursery.start_soon(self._retry_ports)

    async def _follow(self) -> None:
        """Each VM that has changed: its ports opened or closed, its address learnt."""
        for record in self._inventory.records():
            self._note(record.domain.id)
        async for id in self._receive:
            changed = next((r for r in self._inventory.records() if r.domain.id == id), None)
            if changed is None:
                self._vms.forwards.close(id)
                await self._vms.addresses.forget(id)
                continue
            await self._vms.forwards.reconcile(changed)
            await self._vms.addresses.reconcile(changed)
            if changed.domain.state is DomainState.RUNNING and id not in self._inventory.addresses:
                await self._learn_address(id)

    async def _learn_address(self, id: str) -> None:
        if not isinstance(self._hypervisor, GuestInspection):
            return
        try:
            with trio.move_on_after(2):
                self._inventory.learnt(id, await self._hypervisor.addresses(id))
        except TwinshareError as error:
            log.debug("no address yet", vm=id, error=error.message)

    async def _retry_ports(self) -> None:
        """Open the forwards whose ports other programs had, once those are free."""
        while True:
            await trio.sleep(LOOK_EVERY)
            for id in list(self._inventory.unopened):
                self._note(id)

    async def _resume_after_full_disk(self) -> None:
        """QEMU pauses a guest whose write finds the disk full; with free space again the write is repeated."""
        while True:
            await trio.sleep(LOOK_EVERY)
            held = [r for r in self._inventory.records() if r.domain.reason == "disk_full"]
            if not held or shutil.disk_usage(self._data_dir).free < FREE_TO_RESUME:
                continue
            for record in held:
                try:
                    await self._hypervisor.resume(record.domain.id)
                    await self._inventory.refresh(record.domain.id)
                except TwinshareError as error:
                    log.warning("could not resume a VM", vm=record.domain.name, error=error.message)


async def start_after_boot(vms: VmContext, start: Callable[[str], Awaitable[object]], state: State) -> None:
    """Start the VMs that are marked `autostart`, once for each boot of the machine; `start` gets the id of each."""
    boot = await trio.to_thread.run_sync(BOOT_ID.read_bytes)
    rows = await state.query("SELECT value FROM facts WHERE name = 'boot'")
    if (rows and rows[0][0] == boot) or not vms.hypervisor.connected:
        return
    for record in vms.inventory.records():
        if record.metadata.autostart and not record.active:
            try:
                await start(record.domain.id)
            except TwinshareError as error:
                log.warning("autostart failed", vm=record.domain.name, error=error.message)
    await state.execute("INSERT OR REPLACE INTO facts VALUES ('boot', ?)", (boot,))
