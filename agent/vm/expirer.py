"""Deletes the VMs whose time to live has ended, each by an operation of the journal, and says so before."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog
import trio

from ...protocols.errors import TwinshareError, VmNotFound
from ...protocols.events import VmExpiring, payload_of
from ..events import EventLog
from .context import VmContext
from .expiry import GRACE, Expiry, boot_id, seconds_left, uptime
from .record import Record

log = structlog.get_logger(__name__)

WARNED_BEFORE = 300.0
"""Seconds between the event and the end; a tenth of the time to live if that is less."""
LOOK_EVERY = 30.0
LOOK_AGAIN_AFTER = 0.05
RETRY_AFTER = 30.0
DELETED_AT_ONCE = 4

Delete = Callable[[str], Awaitable[object]]
"""Deletes the VM with this ID, also one that runs. Raises: TwinshareError."""


class Expirer:
    """`run` never ends. A VM that cannot be deleted now is tried again after `RETRY_AFTER` seconds."""

    def __init__(self, vms: VmContext, events: EventLog, delete: Delete) -> None:
        self._vms, self._events, self._delete = vms, events, delete
        self._limit = trio.CapacityLimiter(DELETED_AT_ONCE)
        self._ending: set[str] = set()
        # The end that listeners have heard of, by VM; also in a former life of the agent.
        self._warned: dict[str, Expiry] = {}
        self._heard = {
            (said.id, said.expires_at) for event in events.kept if isinstance(said := payload_of(event), VmExpiring)
        }

    async def run(self) -> None:
        """Look whenever a VM changes, and when the next end or warning is due."""
        async with trio.open_nursery() as nursery:
            while True:
                changed, wait = self._vms.inventory.changed, LOOK_EVERY
                there = {record.domain.id: record for record in self._vms.inventory.records()}
                self._warned = {id: expiry for id, expiry in self._warned.items() if id in there}
                for record in there.values():
                    if record.metadata.expiry is not None and record.domain.id not in self._ending:
                        wait = min(wait, await self._look(nursery, record, record.metadata.expiry))
                if self._ending:
                    wait = min(wait, RETRY_AFTER)
                with trio.move_on_after(max(wait, LOOK_AGAIN_AFTER)):
                    await changed.wait()

    async def _look(self, nursery: trio.Nursery, record: Record, expiry: Expiry) -> float:
        """Do what is due for one VM; return the seconds until it is to be looked at again."""
        ttl = float(record.metadata.ttl or 0)
        left, warn_at = seconds_left(expiry, ttl), min(WARNED_BEFORE, ttl / 10)
        if left <= warn_at:
            self._warn(record, expiry)
        if left <= 0:
            self._ending.add(record.domain.id)
            nursery.start_soon(self._end, record)
        elif expiry.boot != boot_id() and uptime() >= GRACE:
            await self._keep_on_both_clocks(record, left)
        return left if left <= warn_at else left - warn_at

    def _warn(self, record: Record, expiry: Expiry) -> None:
        id = record.domain.id
        if self._warned.get(id) != expiry and (id, expiry.at) not in self._heard:
            self._events.publish(VmExpiring(id=id, name=record.domain.name, expires_at=expiry.at))
        self._warned[id] = expiry

    async def _end(self, record: Record) -> None:
        id = record.domain.id
        try:
            async with self._limit:
                log.info("a VM's time to live has ended", vm=record.domain.name, ttl=record.metadata.ttl)
                await self._delete(id)
        except VmNotFound:
            pass
        except TwinshareError as error:
            log.warning("a VM could not be deleted at its end", vm=record.domain.name, error=error.message)
            await trio.sleep(RETRY_AFTER)
        finally:
            self._ending.discard(id)

    async def _keep_on_both_clocks(self, record: Record, left: float) -> None:
        """Keep the end by the clock of this boot, too, so that nobody who sets the time of day moves it."""
        vms, id = self._vms, record.domain.id
        try:
            async with vms.metadata_locked(id):
                now = await vms.record(id)
                if now.metadata.expiry is not None and now.metadata.expiry.boot != boot_id():
                    expiry = msgspec.structs.replace(now.metadata.expiry, uptime=uptime() + left, boot=boot_id())
                    metadata = msgspec.structs.replace(now.metadata, expiry=expiry)
                    await vms.hypervisor.set_metadata(id, metadata.to_text())
        except TwinshareError as error:
            log.debug("the end of a VM is kept later", vm=record.domain.name, error=error.message)
