"""The twin: libvirt's answers and errors without libvirt, and faults on demand.

Its domains can live in a file, so that they outlast a killed agent as real guests do. It waits only on trio's clock:
with a virtual clock a day passes at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ....protocols.errors import (
    DeadlineExceeded,
    HypervisorDown,
    ImageDamaged,
    TwinshareError,
    Unsupported,
    VmExists,
    VmNotFound,
    WrongState,
)
from ...background import open_background
from ..changes import ChangeFeed
from ..picture import png
from ..port import Addresses, Change, ChangeKind, Domain, DomainPlan, DomainState, DomainStats, Features
from .guest import GuestServer, Life, http_server, run_server, show_screen, stream_pair
from .record import Behaviour, Record, load, save


@asynccontextmanager
async def open_fake_hypervisor(
    *,
    behaviour: Behaviour | None = None,
    path: Path | None = None,
    accelerator: str = "qemu",
    host_cpus: int = 8,
) -> AsyncIterator[FakeHypervisor]:
    """A hypervisor in memory. With `path` (a file) its domains are kept there, running ones too."""
    features = Features(
        name="fake",
        version="1",
        uri=f"fake://{path or ''}",
        accelerator=accelerator,
        networks=("default", "isolated"),
        host_cpus=host_cpus,
    )
    async with open_background() as nursery:
        hypervisor = FakeHypervisor(nursery, features, behaviour or Behaviour(), load(path) if path else {}, path)
        try:
            yield hypervisor
        finally:
            hypervisor.close()


class FakeHypervisor:
    """Implements Hypervisor, Observing and Dialling; the methods after the port's are the faults."""

    def __init__(
        self,
        nursery: trio.Nursery,
        features: Features,
        behaviour: Behaviour,
        records: dict[str, Record],
        path: Path | None,
    ) -> None:
        self.behaviour = behaviour
        self._nursery = nursery
        self._features = features
        self._records = records
        self._path = path
        self._feed = ChangeFeed()
        self._connected = True
        # What a domain has beside its record: a life while it is active, and the faults that somebody gave it.
        self._lives: dict[str, Life] = {}
        self._shutdown_after: dict[str, float | None] = {}
        self._refusals: dict[str, TwinshareError] = {}
        self._hung: dict[str, trio.Event] = {}
        self._full: set[str] = set()
        self._servers: dict[tuple[str, int], GuestServer] = {}
        for record in records.values():
            if record.active:  # says the file: it was so all the time
                self._begin(record)

    def close(self) -> None:
        self._feed.close()

    # --- Hypervisor ---

    @property
    def features(self) -> Features:
        return self._features

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        return self._feed.receive

    async def list_domains(self) -> Sequence[Domain]:
        await self._call()
        return [record.seen() for record in self._records.values()]

    async def get_domain(self, id: str) -> Domain:
        await self._call()
        return self._record(id).seen()

    async def define(self, plan: DomainPlan) -> None:
        await self._call()
        for other in self._records.values():
            if (other.plan.name == plan.name) != (other.plan.id == plan.id):
                raise VmExists(f"a VM named {other.plan.name!r} exists already", name=other.plan.name)
        known = self._records.get(plan.id)
        if known is None:
            self._records[plan.id] = Record(plan=plan, metadata=plan.metadata)
        else:
            known.plan, known.metadata = plan, plan.metadata
        self._changed(ChangeKind.DEFINED, plan.id)

    async def undefine(self, id: str) -> None:
        await self._call()
        record = self._records.get(id)
        if record is None:
            return
        if record.active:
            raise WrongState(f"VM {record.plan.name!r} is {record.state}: stop it before it is deleted")
        del self._records[id]
        self._changed(ChangeKind.UNDEFINED, id)

    async def start(self, id: str) -> None:
        await self._call()
        record = self._record(id)
        if record.active:
            return
        if refusal := self._refusals.get(id):
            raise refusal
        if record.plan.accelerator == "kvm" and self._features.accelerator != "kvm":
            raise Unsupported("this machine has no working KVM")
        if self.behaviour.check_files and not await trio.Path(record.plan.disk).exists():
            raise ImageDamaged(f"the disk of VM {record.plan.name!r} is missing")
        record.started_at = self.behaviour.now()
        self._begin(record)
        self._move(record, DomainState.RUNNING)

    async def shutdown(self, id: str) -> None:
        await self._call()
        record = self._record(id)
        if not record.active:
            return
        await self._monitor(id)
        after = self._shutdown_after.get(id, self.behaviour.shutdown_after)
        if after is not None and record.state is DomainState.RUNNING:
            self._nursery.start_soon(self._lives[id].run, self._power_off, record, after)

    async def destroy(self, id: str) -> None:
        await self._call()
        record = self._records.get(id)
        if record is not None and record.active:
            self._end(record, DomainState.SHUTOFF, None)

    async def pause(self, id: str) -> None:
        await self._call()
        record = await self._running(id)
        if record.state is DomainState.RUNNING:
            self._move(record, DomainState.PAUSED, "user")

    async def resume(self, id: str) -> None:
        await self._call()
        record = await self._running(id)
        if id in self._full:
            self.fill_disk(id)
        elif record.state is DomainState.PAUSED:
            self._move(record, DomainState.RUNNING)

    async def set_metadata(self, id: str, metadata: str) -> None:
        await self._call()
        self._record(id).metadata = metadata
        self._changed(ChangeKind.DEFINED, id)

    async def set_autostart(self, id: str, *, enabled: bool) -> None:
        await self._call()
        self._record(id).autostart = enabled
        self._changed(ChangeKind.DEFINED, id)

    # --- Observing and Dialling ---

    async def stats(self, id: str) -> DomainStats:
        await self._call()
        record = await self._running(id)
        now = self.behaviour.now()
        age = max(0.0, (now - (record.started_at or now)).total_seconds())
        return DomainStats(
            cpu_time=age / 50,
            memory_rss=record.plan.memory << 20,
            disk_read=1 << 20,
            disk_written=int(age) << 12,
            disk_allocated=1 << 20,
            net_received=int(age) << 10,
            net_sent=int(age) << 10,
        )

    async def addresses(self, id: str) -> Addresses:
        await self._call()
        await self._running(id)
        if self.behaviour.boots_in is None:
            return Addresses(addresses=(), source="none")
        return Addresses(addresses=("10.0.2.15",), source="agent")

    async def screenshot(self, id: str) -> bytes:
        await self._call()
        await self._running(id)
        return png(720, 400, b"\x80" * (720 * 400), channels=1)

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        await self._call()
        record = await self._running(id)
        server = self._servers.get((id, port)) or (http_server(record.plan.name) if port == 80 else None)
        if server is None:
            raise ConnectionRefusedError(f"nothing in VM {record.plan.name!r} listens on port {port}")
        near, far = stream_pair()
        self._nursery.start_soon(self._lives[id].run, run_server, server, far)
        return near

    async def dial_screen(self, id: str) -> trio.SocketStream:
        await self._call()
        await self._running(id)
        near, far = stream_pair()
        self._nursery.start_soon(self._lives[id].run, run_server, show_screen, far)
        return near

    # --- Faults ---

    def hang(self, id: str) -> None:
        """Its QEMU stands still: what needs it ends in DeadlineExceeded; lists and `destroy` go on."""
        self._hung[id] = trio.Event()

    def unhang(self, id: str) -> None:
        if id in self._hung:
            self._hung.pop(id).set()

    def refuse_start(self, id: str, error: TwinshareError | None) -> None:
        """Every start raises `error`, until None."""
        if error is None:
            self._refusals.pop(id, None)
        else:
            self._refusals[id] = error

    def obey_shutdown(self, id: str, after: float | None) -> None:
        """This guest powers off `after` seconds when asked, or never."""
        self._shutdown_after[id] = after

    def crash(self, id: str) -> None:
        """Its QEMU is killed."""
        self._end(self._record(id), DomainState.CRASHED, "crashed")

    def power_off(self, id: str) -> None:
        """The guest switches itself off."""
        self._end(self._record(id), DomainState.SHUTOFF, None)

    def fill_disk(self, id: str) -> None:
        """A write of the guest finds the host's disk full: it is paused, and a resume pauses it again."""
        self._full.add(id)
        self._move(self._record(id), DomainState.PAUSED, "disk_full")
        self._feed.publish(Change(kind=ChangeKind.DISK_FULL, id=id))

    def free_disk(self, id: str) -> None:
        self._full.discard(id)

    def go_down(self) -> None:
        """The connection is lost: every call raises HypervisorDown. The guests run on."""
        self._connected = False
        self._feed.publish(Change(kind=ChangeKind.DOWN))

    def come_up(self) -> None:
        self._connected = True
        self._feed.publish(Change(kind=ChangeKind.RESYNC))

    def serve_in_guest(self, id: str, port: int, server: GuestServer) -> None:
        """Let the guest listen; port 80 answers its name unless told otherwise here."""
        self._servers[id, port] = server

    # --- Inside ---

    async def _call(self) -> None:
        await trio.sleep(self.behaviour.delay)
        if not self._connected:
            raise HypervisorDown("the hypervisor does not answer")

    def _record(self, id: str) -> Record:
        try:
            return self._records[id]
        except KeyError:
            raise VmNotFound(f"no VM has the id {id}") from None

    async def _running(self, id: str) -> Record:
        record = self._record(id)
        if not record.active:
            raise WrongState(f"VM {record.plan.name!r} is not running")
        await self._monitor(id)
        return record

    async def _monitor(self, id: str) -> None:
        """What asks the guest's QEMU waits while that hangs."""
        hung = self._hung.get(id)
        if hung is not None:
            with trio.move_on_after(self.behaviour.patience):
                await hung.wait()
                return
            raise DeadlineExceeded("the VM's QEMU does not answer; a forced stop works all the same")

    def _begin(self, record: Record) -> None:
        life = self._lives[record.plan.id] = Life()
        if self.behaviour.boots_in is not None:
            self._nursery.start_soon(life.run, self._boot, record.plan.id, self.behaviour.boots_in)

    async def _boot(self, id: str, boots_in: float) -> None:
        await trio.sleep(boots_in)
        self._feed.publish(Change(kind=ChangeKind.AGENT_UP, id=id))

    async def _power_off(self, record: Record, after: float) -> None:
        await trio.sleep(after)
        self._end(record, DomainState.SHUTOFF, None)

    def _end(self, record: Record, state: DomainState, reason: str | None) -> None:
        record.started_at = None
        if life := self._lives.pop(record.plan.id, None):
            life.end()
        self.unhang(record.plan.id)
        self._full.discard(record.plan.id)
        self._move(record, state, reason)

    def _move(self, record: Record, state: DomainState, reason: str | None = None) -> None:
        record.state, record.reason = state, reason
        self._changed(ChangeKind.STATE, record.plan.id)

    def _changed(self, kind: ChangeKind, id: str) -> None:
        # Written before it is told, in one piece and without waiting: nobody can see what a kill would undo.
        if self._path is not None:
            save(self._path, self._records.values())
        self._feed.publish(Change(kind=kind, id=id))
