"""What the node does by itself for its VMs: starts some after a boot, lets one go on when its disk has room again,
keeps forwards and addresses right.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog
import trio

from ...protocols.access import LOCAL_ADMIN
from ...protocols.errors import TwinshareError
from ..events import EventLog
from ..hypervisor.port import Change, ChangeKind, DomainState, GuestInspection, Hypervisor
from ..state import State
from .inventory import Inventory
from .local import LocalVms, VmRoom

log = structlog.get_logger(__name__)

LOOK_EVERY = 2.0
ROOM_TO_GO_ON = 64 << 20
MAX_CHANGES = 4096
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Watch:
    """`run` never ends; it is fed by the inventory's notices."""

    def __init__(self, room: VmRoom, events: EventLog, data_dir: Path) -> None:
        self._room, self._events, self._data_dir = room, events, data_dir
        self._send, self._receive = trio.open_memory_channel[str](MAX_CHANGES)
        room.inventory.on_change = self._note
        room.inventory.on_notice = self._notice

    @property
    def _inventory(self) -> Inventory:
        return self._room.inventory

    @property
    def _hypervisor(self) -> Hypervisor:
        return self._room.hypervisor

    def _note(self, id: str) -> None:
        try:
            self._send.send_nowait(id)
        except trio.WouldBlock:
            log.warning("too many changes at once; the next resync looks at all VMs")

    def _notice(self, change: Change) -> None:
        if change.kind is ChangeKind.DISK_FULL and change.id is not None:
            self._events.publish("vm.disk_full", {"id": change.id})
        elif change.kind is ChangeKind.DOWN:
            self._events.publish("hypervisor.down", {})
        elif change.kind is ChangeKind.AGENT_UP and change.id is not None:
            self._note(change.id)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._let_go_on)

    async def _follow(self) -> None:
        """Each VM that has changed: its ports opened or closed, its address learnt."""
        for record in self._inventory.records():
            self._note(record.domain.id)
        async for id in self._receive:
            changed = next((r for r in self._inventory.records() if r.domain.id == id), None)
            if changed is None:
                self._room.forwards.close(id)
                continue
            await self._room.forwards.reconcile(changed)
            if changed.domain.state is DomainState.RUNNING and id not in self._inventory.addresses:
                await self._learn_address(id)

    async def _learn_address(self, id: str) -> None:
        if not isinstance(self._hypervisor, GuestInspection):
            return
        try:
            with trio.move_on_after(2):
                found = await self._hypervisor.addresses(id)
                if found.addresses:
                    self._inventory.addresses[id] = found.addresses[0]
        except TwinshareError as error:
            log.debug("no address yet", vm=id, error=error.message)

    async def _let_go_on(self) -> None:
        """A full disk pauses a guest in the middle of a write; with room again it can go on as if nothing had been."""
        while True:
            await trio.sleep(LOOK_EVERY)
            held = [r for r in self._inventory.records() if r.domain.reason == "disk_full"]
            if not held or shutil.disk_usage(self._data_dir).free < ROOM_TO_GO_ON:
                continue
            for record in held:
                try:
                    await self._hypervisor.resume(record.domain.id)
                    await self._inventory.refresh(record.domain.id)
                except TwinshareError as error:
                    log.warning("could not let a VM go on", vm=record.domain.name, error=error.message)


async def start_after_boot(room: VmRoom, state: State) -> None:
    """Start the VMs that are marked `autostart`, once for each boot of the machine."""
    boot = await trio.to_thread.run_sync(BOOT_ID.read_bytes)
    rows = await state.query("SELECT value FROM facts WHERE name = 'boot'")
    if (rows and rows[0][0] == boot) or not room.hypervisor.connected:
        return
    for record in room.inventory.records():
        if record.metadata.autostart and not record.active:
            try:
                await LocalVms(room, LOCAL_ADMIN).start_vm(record.domain.id)
            except TwinshareError as error:
                log.warning("autostart failed", vm=record.domain.name, error=error.message)
    await state.execute("INSERT OR REPLACE INTO facts VALUES ('boot', ?)", (boot,))
