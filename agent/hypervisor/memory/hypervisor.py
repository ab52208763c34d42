"""The hypervisor port in memory: libvirt's answers and errors without libvirt, and faults on demand.

Its domains can be stored in a file, so that they outlast a killed agent as real guests do. It waits on trio's clock
alone: with a virtual clock a day passes at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from ....protocols.errors import GuestRefused, ImageDamaged, Unsupported, VmExists, WrongState
from ...background import open_background
from ..png import png
from ..port import Addresses, Change, ChangeKind, Domain, DomainPlan, DomainState, DomainStats, ExportedDisk, Features
from .disk_export import serve_disk
from .guest import GuestServer, echo, http_server, run_server, stream_pair
from .record import Behaviour, Record, load
from .screen import show_screen
from .simulation import Simulation


@asynccontextmanager
async def open_memory_hypervisor(
    *,
    behaviour: Behaviour | None = None,
    path: Path | None = None,
    accelerator: str = "qemu",
) -> AsyncIterator[MemoryHypervisor]:
    """Open a hypervisor in memory. With `path` (a file) its domains are stored there, running ones too."""
    features = Features(
        name="fake",
        version="1",
        uri=f"fake://{path or ''}",
        accelerator=accelerator,
        networks=("default", "isolated"),
        host_cpus=8,
    )
    async with open_background() as nursery:
        hypervisor = MemoryHypervisor(nursery, features, behaviour or Behaviour(), load(path) if path else {}, path)
        try:
            yield hypervisor
        finally:
            hypervisor.close()


class MemoryHypervisor(Simulation):
    """Implements Hypervisor, GuestInspection, GuestClock, GuestStreams and DiskExport; `Simulation` has the faults."""

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
        return [record.domain() for record in self._records.values()]

    async def get_domain(self, id: str) -> Domain:
        await self._call()
        return self._record(id).domain()

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
            self._nursery.start_soon(self._runs[id].run, self._power_off, record, after)

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
            if program := self._runs[id].program:
                program.pause()
            record.paused_at = self.behaviour.now()

    async def resume(self, id: str) -> None:
        await self._call()
        record = await self._running(id)
        if id in self._full:
            self.fill_disk(id)
        elif record.state is DomainState.PAUSED:
            now = self.behaviour.now()
            record.clock_behind += (now - (record.paused_at or now)).total_seconds()
            self._move(record, DomainState.RUNNING)
            if program := self._runs[id].program:
                program.resume()
            with suppress(Unsupported):
                await self.set_guest_time(id)

    async def set_metadata(self, id: str, metadata: str) -> None:
        await self._call()
        self._record(id).metadata = metadata
        self._changed(ChangeKind.DEFINED, id)

    async def disk_path(self, id: str) -> Path:
        await self._call()
        record = self._record(id)
        return record.disk or record.plan.disk

    # --- GuestInspection, GuestClock, GuestStreams and DiskExport ---

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

    async def set_guest_time(self, id: str) -> None:
        await self._call()
        record = await self._running(id)
        if self.behaviour.boots_in is None or record.state is not DomainState.RUNNING:
            raise Unsupported("no guest agent answers in the VM, by which its clock could be set")
        record.clock_behind = 0.0

    async def ask_guest_agent(self, id: str, command: str, arguments: Mapping[str, object]) -> object:
        await self._call()
        record = await self._running(id)
        if self.behaviour.boots_in is None or record.state is not DomainState.RUNNING:
            raise Unsupported("no guest agent answers in the VM")
        if command == "guest-ping":
            return {}
        run = self._runs[id]
        match command, arguments:
            case "guest-exec", {"path": str(path), "arg": list(words)} if self.behaviour.guest_agent:
                number = run.agent.add()
                self._nursery.start_soon(run.run, run.agent.run, number, [path, *words])
                return {"pid": number}
            case "guest-exec-status", {"pid": int(number)} if self.behaviour.guest_agent:
                return run.agent.status(number)
        raise GuestRefused("the guest agent refuses the command")

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        await self._call()
        record = await self._running(id)
        server = self._servers.get((id, port)) or (http_server(record.plan.name) if port == 80 else None)
        if server is None:
            raise ConnectionRefusedError(f"nothing in VM {record.plan.name!r} listens on port {port}")
        near, far = stream_pair()
        self._nursery.start_soon(self._runs[id].run, run_server, server, far)
        return near

    async def dial_screen(self, id: str) -> trio.SocketStream:
        await self._call()
        await self._running(id)
        near, far = stream_pair()
        self._nursery.start_soon(self._runs[id].run, run_server, show_screen, far)
        return near

    async def dial_console(self, id: str) -> trio.SocketStream:
        await self._call()
        record = await self._running(id)
        near, far = stream_pair()
        serve = self._consoles.get(id) or echo(record.plan.directory / "tty.log")
        run = self._runs[id]
        self._nursery.start_soon(run.run, _in_turn, run.console, serve, far)
        return near

    async def dial_channel(self, id: str) -> trio.SocketStream:
        await self._call()
        await self._running(id)
        run = self._runs[id]
        server = self._channels.get(id) or (run.program.serve if run.program is not None else None)
        if server is None:
            raise Unsupported("the simulated guest has no channel")
        near, far = stream_pair()
        self._nursery.start_soon(run.run, _in_turn, run.channel, server, far)
        return near

    async def channel_is_open(self, id: str) -> bool:
        await self._call()
        await self._running(id)
        if id in self._channels:
            return True
        program = self._runs[id].program
        if program is None:
            raise Unsupported("the simulated guest has no channel")
        return program.runs

    @asynccontextmanager
    async def export_disk(self, id: str, directory: Path) -> AsyncIterator[ExportedDisk]:
        await self._call()
        record = await self._running(id)
        async with serve_disk(record.disk or record.plan.disk) as exported:
            yield exported


async def _in_turn(turn: trio.Lock, serve: GuestServer, stream: trio.SocketStream) -> None:
    async with stream, turn:
        await run_server(serve, stream)
