"""The guests of this node: one `VmGuest` for each VM that runs or has sessions, following the inventory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import trio

from ...protocols.access import account_of
from ...protocols.errors import GuestUnreachable, WrongState
from ..background import open_background
from ..hypervisor.port import DomainState, GuestAgent, GuestStreams
from ..vm.context import VmContext
from ..vm.lifecycle import require_active
from ..vm.record import Record
from .channel import ChannelPort
from .vm_guest import VmGuest

log = structlog.get_logger(__name__)

EXPIRE_EVERY = 30.0
BOOTS_WITHIN = 90.0
"""Seconds from its start in which a guest should have booted; in emulation a distribution takes most of it."""
REPORTS_EVERY = 1.0
"""Seconds between two looks at what a guest says about itself."""
_GONE = (DomainState.SHUTOFF, DomainState.CRASHED)


class Guests:
    """Made by `open_guests`."""

    def __init__(self, vms: VmContext, root: Path, nursery: trio.Nursery) -> None:
        self._vms, self._root, self._nursery = vms, root, nursery
        self._guests: dict[str, VmGuest] = {}
        self._runs: dict[str, trio.CancelScope] = {}

    def of(self, record: Record) -> VmGuest:
        """The guest of a VM, whether it runs or not."""
        guest = self._guests.get(record.domain.id)
        if guest is None:
            guest = self._guests[record.domain.id] = self._new_guest(record.domain.id)
        guest.name = record.domain.name
        return guest

    def _new_guest(self, id: str) -> VmGuest:
        hypervisor = self._vms.hypervisor
        ask = partial(hypervisor.ask_guest_agent, id) if isinstance(hypervisor, GuestAgent) else None
        return VmGuest(id, self._root / id, ask)

    def sessions_of(self, account: str) -> int:
        """How many sessions of an account run on this node."""
        running = (session for guest in self._guests.values() for session in guest.running())
        return sum(account_of(session.record.owner) == account for session in running)

    def running(self, record: Record) -> VmGuest:
        """The guest of a VM that runs. Raises: WrongState."""
        require_active(record.domain)
        if record.domain.state is DomainState.PAUSED:
            raise WrongState(f"VM '{record.domain.name}' is paused; resume it first", vm=record.domain.name)
        self._follow(record)
        return self.of(record)

    async def run(self) -> None:
        """Follow the inventory; runs until it is cancelled."""
        while True:
            changed = self._vms.inventory.changed
            records = list(self._vms.inventory.records())
            for record in records:
                self._follow(record)
            if self._vms.inventory.is_complete:
                await self._forget({record.domain.id for record in records})
            for record in records:
                if record.domain.state in _GONE and (guest := self._guests.get(record.domain.id)):
                    await guest.lose_running(GuestUnreachable(f"VM '{record.domain.name}' has stopped"))
            await changed.wait()

    def _follow(self, record: Record) -> None:
        id = record.domain.id
        if record.active and id not in self._runs:
            self._runs[id] = trio.CancelScope()
            self._nursery.start_soon(self._run, record, self._runs[id], name=f"guest {record.domain.name}")
        elif not record.active and id in self._runs:
            self._runs[id].cancel()

    async def _run(self, record: Record, scope: trio.CancelScope) -> None:
        """One run of a VM."""
        hypervisor = self._vms.hypervisor
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow_reports, record.domain.id, self.of(record))
                    if isinstance(hypervisor, GuestStreams):
                        id = record.domain.id
                        port = ChannelPort(
                            partial(hypervisor.dial_channel, id), partial(hypervisor.channel_is_open, id)
                        )
                        await self.of(record).run(port, record.domain.name, boots_within(record))
                    await trio.sleep_forever()
        finally:
            del self._runs[record.domain.id]
        # It may have been started again meanwhile.
        for now in self._vms.inventory.records():
            if now.domain.id == record.domain.id:
                self._follow(now)

    async def _follow_reports(self, id: str, guest: VmGuest) -> None:
        """Open the ports on which a guest says that it listens, at its VM's address; not more often than it should."""
        while True:
            changed = guest.on_report
            if (report := guest.report) is not None:
                await self._vms.addresses.listens(id, (port for port, _ in report.listening), report.addresses)
                await trio.sleep(REPORTS_EVERY)
            await changed.wait()

    async def _forget(self, known: set[str]) -> None:
        """Remove what is left of VMs that are no more."""
        for id in [id for id in self._guests if id not in known]:
            guest = self._guests.pop(id)
            if id in self._runs:
                self._runs[id].cancel()
            await trio.to_thread.run_sync(guest.remove)

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRE_EVERY)
            for guest in list(self._guests.values()):
                await guest.expire()

    def load(self) -> None:
        """Read the sessions that a former life of the agent has left. Blocking."""
        if self._root.is_dir():
            for directory in self._root.iterdir():
                guest = self._guests[directory.name] = self._new_guest(directory.name)
                guest.load()


def boots_within(record: Record) -> float:
    """Seconds that the guest of a VM may still take to boot."""
    started = record.domain.started_at
    return 0.0 if started is None else min(BOOTS_WITHIN - (datetime.now(UTC) - started).total_seconds(), BOOTS_WITHIN)


@asynccontextmanager
async def open_guests(vms: VmContext, root: Path) -> AsyncIterator[Guests]:
    """The guests of a node; `root` is the folder of their sessions."""
    async with open_background() as nursery:
        guests = Guests(vms, root, nursery)
        await trio.to_thread.run_sync(guests.load)
        nursery.start_soon(guests.run)
        nursery.start_soon(guests._expire)
        yield guests
