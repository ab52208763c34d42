"""The simulated host: the domains' records, the runs of their guests, and faults on demand."""

from __future__ import annotations

from pathlib import Path

import trio

from ....protocols.errors import DeadlineExceeded, HypervisorDown, TwinshareError, VmNotFound, WrongState
from ..changes import ChangeFeed
from ..port import Change, ChangeKind, DomainState, Features
from .guest import GuestRun, GuestServer
from .guest_process import GuestProcess
from .record import Behaviour, Record, save


class Simulation:
    """The public methods inject faults, which take effect at once."""

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
        # What a domain has beside its record: a run while it is active, and injected faults.
        self._runs: dict[str, GuestRun] = {}
        self._shutdown_after: dict[str, float | None] = {}
        self._refusals: dict[str, TwinshareError] = {}
        self._hung: dict[str, trio.Event] = {}
        self._full: set[str] = set()
        self._servers: dict[tuple[str, int], GuestServer] = {}
        self._consoles: dict[str, GuestServer] = {}
        self._channels: dict[str, GuestServer] = {}
        for record in records.values():
            if record.active:  # the file says so: it ran all the time
                self._begin(record)

    def close(self) -> None:
        self._feed.close()

    def hang(self, id: str) -> None:
        """Its QEMU hangs: calls that need it end in DeadlineExceeded; lists and `destroy` work."""
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

    def set_shutdown(self, id: str, after: float | None) -> None:
        """This guest powers off `after` seconds when asked, or never."""
        self._shutdown_after[id] = after

    def crash(self, id: str) -> None:
        """Its QEMU is killed."""
        self._end(self._record(id), DomainState.CRASHED, "crashed")

    def power_off(self, id: str) -> None:
        """The guest switches itself off."""
        self._end(self._record(id), DomainState.SHUTOFF, None)

    def reboot(self, id: str) -> None:
        """The guest is reset: its program and all that it ran are gone, and begin anew."""
        run = self._runs[id]
        if run.program is not None:
            self.end_program(id)
            self.start_program(id)

    def fill_disk(self, id: str) -> None:
        """A write of the guest finds the host's disk full: it is paused, and a resume pauses it again."""
        self._full.add(id)
        self._move(self._record(id), DomainState.PAUSED, "disk_full")
        self._feed.publish(Change(kind=ChangeKind.DISK_FULL, id=id))

    def free_disk(self, id: str) -> None:
        self._full.discard(id)

    def move_disk(self, id: str, disk: Path) -> None:
        """Somebody makes a snapshot or a block copy with libvirt: from now on the guest writes to this file."""
        self._record(id).disk = disk

    def clock_behind(self, id: str) -> float:
        """Seconds that the guest's clock is behind the host's."""
        return self._record(id).clock_behind

    def go_down(self) -> None:
        """The connection is lost: every call raises HypervisorDown. The guests run on."""
        self._connected = False
        self._feed.publish(Change(kind=ChangeKind.DOWN))

    def come_up(self) -> None:
        self._connected = True
        self._feed.publish(Change(kind=ChangeKind.RESYNC))

    def serve_in_guest(self, id: str, port: int, server: GuestServer) -> None:
        """Serve a TCP port of the guest; by default port 80 answers with its name."""
        self._servers[id, port] = server

    def serve_console(self, id: str, server: GuestServer) -> None:
        """Serve the guest's serial console; by default it echoes."""
        self._consoles[id] = server

    def end_program(self, id: str) -> None:
        """The guest program is killed, and nobody starts it again."""
        if program := self._runs[id].program:
            program.kill()

    def start_program(self, id: str) -> None:
        """The guest program is started anew."""
        run = self._runs[id]
        run.program = GuestProcess(self._record(id).plan.directory / "guest")
        self._nursery.start_soon(run.run, run.program.run)

    def serve_channel(self, id: str, server: GuestServer) -> None:
        """Serve the guest channel; by default the guest has one only with `Behaviour.guest_program`."""
        self._channels[id] = server

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
        """Wait while the guest's QEMU hangs. Raises: DeadlineExceeded."""
        hung = self._hung.get(id)
        if hung is not None:
            with trio.move_on_after(self.behaviour.timeout):
                await hung.wait()
                return
            raise DeadlineExceeded("the VM's QEMU does not answer; a forced stop works all the same")

    def _begin(self, record: Record) -> None:
        run = self._runs[record.plan.id] = GuestRun()
        if self.behaviour.guest_program:
            self.start_program(record.plan.id)
        if self.behaviour.boots_in is not None:
            self._nursery.start_soon(run.run, self._boot, record.plan.id, self.behaviour.boots_in)

    async def _boot(self, id: str, boots_in: float) -> None:
        await trio.sleep(boots_in)
        self._feed.publish(Change(kind=ChangeKind.AGENT_UP, id=id))

    async def _power_off(self, record: Record, after: float) -> None:
        await trio.sleep(after)
        self._end(record, DomainState.SHUTOFF, None)

    def _end(self, record: Record, state: DomainState, reason: str | None) -> None:
        record.started_at = None
        if run := self._runs.pop(record.plan.id, None):
            run.end()
        self.unhang(record.plan.id)
        self._full.discard(record.plan.id)
        self._move(record, state, reason)

    def _move(self, record: Record, state: DomainState, reason: str | None = None) -> None:
        record.state, record.reason = state, reason
        self._changed(ChangeKind.STATE, record.plan.id)

    def _changed(self, kind: ChangeKind, id: str) -> None:
        # Written before it is published, in one piece and without a checkpoint: nobody sees what a kill would undo.
        if self._path is not None:
            save(self._path, self._records.values())
        self._feed.publish(Change(kind=kind, id=id))
