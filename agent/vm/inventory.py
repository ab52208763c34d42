"""The VMs of this node as they were last seen, for every read: a hypervisor that hangs never hangs a reader.

Kept right by the hypervisor's changes, by every operation that touches a VM, and by a slow look at everything.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

import msgspec
import structlog
import trio

from ...protocols.errors import HypervisorDown, MacTaken, TwinshareError, VmNotFound, WrongState
from ...protocols.node import Resources
from ...protocols.vm import Vm, VmSpec, VmStatus
from ..events import EventLog
from ..hypervisor.port import Addresses, Change, ChangeKind, Hypervisor
from .expiry import shown_end
from .record import NO_REACH, Reach, Record, read_record, view
from .status_events import StatusEvents

log = structlog.get_logger(__name__)

FIRST_LOOK_EVERY = 1.0
TIME_TO_BOOT = 60
"""Seconds after which a guest that nobody can ask is taken to have booted."""


class Inventory:
    """Made by `open_inventory`.

    `on_change` hears the id of every VM whose record has changed, `on_notice` every change that the hypervisor tells.
    By VM and kept by those who know them: `vnc_ports`; `addresses`, what the guest calls itself; `routed`, the address
    that the network routes; `loopback`, the one on this node and its open ports; `answering`, guests that have booted;
    `unopened`, why ports of the VM that should be open are not.
    `creating` has, by name, what was asked for VMs whose creation was admitted, with MAC and ports chosen.
    """

    def __init__(self, hypervisor: Hypervisor, events: EventLog, node: str) -> None:
        self.on_change: Callable[[str], None] | None = None
        self.on_notice: Callable[[Change], None] | None = None
        self.vnc_ports: dict[str, int] = {}
        self.addresses: dict[str, str] = {}
        self.routed: dict[str, str] = {}
        self.loopback: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.answering: set[str] = set()
        self.unopened: dict[str, tuple[str, ...]] = {}
        self.creating: dict[str, VmSpec] = {}
        self._hypervisor, self._node = hypervisor, node
        self._status_events = StatusEvents(events)
        self._records: dict[str, Record] = {}
        # The VM of each record, with all that it was made of.
        self._views: dict[str, tuple[tuple[object, ...], Vm]] = {}
        self._at_work: dict[str, VmStatus] = {}
        self._making: dict[str, Vm] = {}
        self._changed = trio.Event()
        # When the hypervisor was asked for what we hold; for a while also of VMs that are gone.
        self._asked: dict[str, float] = {}
        # For each active VM: its start by the time of day, and the same on the clock since the machine's boot.
        self._born: dict[str, tuple[datetime, float]] = {}
        self._seen_all = False

    def list(self) -> Sequence[Vm]:
        """Every VM, by name. Raises: HypervisorDown until the hypervisor has listed all of them once."""
        self.require_complete()
        making = [vm for id, vm in self._making.items() if id not in self._records]
        return sorted([*(self.view(record) for record in self._records.values()), *making], key=lambda vm: vm.name)

    @property
    def is_complete(self) -> bool:
        """Whether the hypervisor has listed all its VMs; until then an unknown one may exist."""
        return self._seen_all

    def require_complete(self) -> None:
        """Raises: HypervisorDown."""
        if not self._seen_all:
            problems = "; ".join(self._hypervisor.features.problems)
            raise HypervisorDown(f"this node cannot run VMs: {problems or 'the hypervisor is not ready yet'}")

    def records(self) -> Iterable[Record]:
        return list(self._records.values())

    def find(self, ref: str) -> Record:
        """Return the VM of this name, else of this id: libvirt lets a domain be named like the id of another.

        Raises: VmNotFound; WrongState for one whose creation has not come to its domain.
        """
        if (record := self._known(ref)) is not None:
            return record
        self.require_complete()
        if self._is_being_created(ref):
            raise WrongState(
                f"VM '{ref}' is being created; wait for that, or cancel the operation that creates it",
                vm=ref, status=str(VmStatus.CREATING),
            )  # fmt: skip
        raise VmNotFound(f"Virtual machine '{ref}' not found", vm=ref)

    def has(self, ref: str) -> bool:
        """Return whether a name or an id means a VM of this node, be it one that is being created."""
        return self._known(ref) is not None or self._is_being_created(ref)

    def _known(self, ref: str) -> Record | None:
        named = next((record for record in self._records.values() if record.domain.name == ref), None)
        return named or self._records.get(ref)

    def _is_being_created(self, ref: str) -> bool:
        return ref in self.creating or any(ref in (vm.id, vm.name) for vm in self._making.values())

    def check_mac(self, mac: str) -> None:
        """Refuse the MAC of another VM, be it one that is being created. Raises: MacTaken."""
        defined = [(record.domain.name, record.domain.mac) for record in self._records.values()]
        for name, taken in (*defined, *((spec.name, spec.mac) for spec in self.creating.values())):
            if taken == mac:
                raise MacTaken(f"the MAC address {mac} is that of VM '{name}'; choose another", mac=mac, vm=name)

    def get(self, ref: str) -> Vm:
        """Raises: VmNotFound."""
        making = next((vm for vm in self._making.values() if ref in (vm.id, vm.name)), None)
        if making is not None and making.id not in self._records:
            return making
        return self.view(self.find(ref))

    def view(self, record: Record) -> Vm:
        """Return the VM of a record: the same object for as long as nothing of it has changed."""
        id = record.domain.id
        status, uptime = self._at_work.get(id), self._uptime(record)
        reach = self._reach(record) if record.active else NO_REACH
        vnc_port, expires_at = self.vnc_ports.get(id), shown_end(record.metadata.expiry, record.metadata.ttl)
        unopened = self.unopened.get(id, ())
        seen = (record, status, uptime, vnc_port, reach, expires_at, unopened)
        known = self._views.get(id)
        if known is None or known[0] != seen:
            vm = view(record, self._node, reach, at_work=status, uptime=uptime, vnc_port=vnc_port)
            known = (seen, msgspec.structs.replace(vm, warnings=[*vm.warnings, *unopened]) if unopened else vm)
            self._views[id] = known
        return known[1]

    def has_booted(self, record: Record) -> bool:
        """Whether the guest has shown through its channel that it has booted, or had the time to."""
        return record.domain.id in self.answering or (self._uptime(record) or 0) >= TIME_TO_BOOT

    def _reach(self, record: Record) -> Reach:
        """Where a running VM answers: nowhere until its guest has booted."""
        id = record.domain.id
        guest_ip, (address, ports) = self.addresses.get(id), self.loopback.get(id, (None, ()))
        booted = guest_ip is not None or self.has_booted(record)
        ip = self.routed.get(id) or (address if booted else None)
        return Reach(ip=ip, guest_ip=guest_ip, ports=ports if ip is not None else ())

    def learnt(self, id: str, found: Addresses) -> None:
        """Take what a guest calls itself, and the address that libvirt's own network gave it, which is routed."""
        if found.addresses:
            self.addresses[id] = found.addresses[0]
            if found.source == "lease":
                self.routed[id] = found.addresses[0]

    def _uptime(self, record: Record) -> int | None:
        """Seconds since the start, on a clock that nobody sets: the time of day is asked once, when a start is new."""
        id, started_at = record.domain.id, record.domain.started_at
        if started_at is None or not record.active:
            return None
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        known, born = self._born.get(id) or (None, 0.0)
        if known != started_at:
            born = now - max(0.0, (datetime.now(UTC) - started_at).total_seconds())
            self._born[id] = (started_at, born)
        return int(now - born)

    def has_name(self, name: str) -> bool:
        return any(record.domain.name == name for record in self._records.values())

    def running(self) -> Mapping[str, Resources]:
        """The resources of each active VM, by its ID."""
        domains = [record.domain for record in self._records.values() if record.active]
        return {domain.id: Resources(memory=domain.memory, cpu=domain.cpu_cores, disk=0) for domain in domains}

    def used_by(self, digest: str) -> Sequence[str]:
        """The names of the VMs that run on an image."""
        return sorted(r.domain.name for r in self._records.values() if r.metadata.digest == digest)

    @contextmanager
    def at_work(self, id: str, status: VmStatus | None, making: Vm | None = None) -> Iterator[None]:
        """Show a VM with the `status` of the operation that is at work on it; `making` where it is not there yet."""
        if status is not None:
            self._at_work[id] = status
        if making is not None:
            self._making[id] = msgspec.structs.replace(making, node=self._node)
        self._publish(id)
        try:
            yield
        finally:
            self._at_work.pop(id, None)
            self._making.pop(id, None)
            self._publish(id)

    async def refresh(self, id: str) -> Record | None:
        """Look at one domain now; None when it is gone. Raises: HypervisorDown, DeadlineExceeded."""
        asked = time.monotonic()
        try:
            record = read_record(await self._hypervisor.get_domain(id), datetime.now(UTC))
        except VmNotFound:
            record = None
        self._put(id, record, asked)
        return self._records.get(id)

    async def resync(self) -> None:
        """Look at every domain now. Raises: HypervisorDown, DeadlineExceeded."""
        asked = time.monotonic()
        domains = await self._hypervisor.list_domains()
        now = datetime.now(UTC)
        found = {domain.id: read_record(domain, now) for domain in domains}
        for id in [*found, *(known for known in self._records if known not in found)]:
            self._put(id, found.get(id), asked)
        self._asked = {id: at for id, at in self._asked.items() if id in self._records or at >= asked}
        self._seen_all = True

    @property
    def changed(self) -> trio.Event:
        """Set by the next change of any record."""
        return self._changed

    async def wait_until(self, id: str, reached: Callable[[Record | None], bool]) -> None:
        """Wait, for as long as the caller's deadline allows, until a VM's record is so."""
        while not reached(self._records.get(id)):
            changed = self._changed
            await changed.wait()

    def _put(self, id: str, record: Record | None, asked: float) -> None:
        """Take an answer, unless a question that was asked later has been answered already."""
        if asked < self._asked.get(id, asked):
            return
        self._asked[id] = asked
        before = self._records.get(id)
        if record is not None:
            self._records[id] = record
        elif before is not None:
            del self._records[id]
            self._views.pop(id, None)
        if record is None or not record.active:
            self.addresses.pop(id, None)
            self.routed.pop(id, None)
            self.answering.discard(id)
            self._born.pop(id, None)
        self._publish(id)
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        if (before and before.domain) != (record and record.domain) and self.on_change:
            self.on_change(id)

    def _publish(self, id: str) -> None:
        record = self._records.get(id)
        self._status_events.publish(id, self.view(record) if record else self._making.get(id))

    async def _follow(self) -> None:
        async for change in self._hypervisor.changes:
            await self._take(change)

    async def _take(self, change: Change) -> None:
        if self.on_notice:
            self.on_notice(change)
        try:
            if change.kind is ChangeKind.RESYNC:
                await self.resync()
            elif change.id is not None:
                await self.refresh(change.id)
        except TwinshareError as error:
            log.warning("could not look at what changed", change=change.kind, error=error.message)

    async def _look_around(self, interval: float) -> None:
        while True:
            # Until all were seen once, none is published.
            await trio.sleep(interval if self._seen_all else min(interval, FIRST_LOOK_EVERY))
            if self._hypervisor.connected:
                await self._take(Change(kind=ChangeKind.RESYNC))


@asynccontextmanager
async def open_inventory(
    hypervisor: Hypervisor, events: EventLog, node: str, resync_interval: float
) -> AsyncIterator[Inventory]:
    """The inventory, filled once if the hypervisor is there, and kept right."""
    inventory = Inventory(hypervisor, events, node)
    if hypervisor.connected:
        await inventory._take(Change(kind=ChangeKind.RESYNC))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(inventory._follow)
        nursery.start_soon(inventory._look_around, resync_interval)
        yield inventory
        nursery.cancel_scope.cancel()
