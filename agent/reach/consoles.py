"""The serial consoles of this node's VMs: one connection to the guest while somebody listens, for all who do.

QEMU serves one connection at a time, and a guest waits for whoever does not read its console. So it is always read,
everybody gets what it says, and who does not keep up is let go, not the others. All who may listen may type.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
import trio

from ...protocols.access import AuditSink, Caller, Role
from ...protocols.errors import DeadlineExceeded, Overloaded, TwinshareError, Unavailable, Unsupported, WrongState
from ..background import open_background
from ..hypervisor.port import GuestStreams
from ..vm.context import VmContext
from ..vm.lifecycle import require_active
from ..vm.record import Record

log = structlog.get_logger(__name__)

MAX_LISTENERS = 8
"""Of one VM, at once."""
BUFFER = 256 << 10
"""Bytes that a listener may be behind."""
CHUNK = 16 << 10
DIAL_WITHIN = 15.0
TYPE_WITHIN = 30.0
"""Seconds for which a guest may leave unread what is typed, once QEMU and the kernel hold no more of it."""
TYPED = 4096


class Console(Protocol):
    """One listener's end of a VM's console, here or at a peer.

    Both raise what ended it: WrongState when the VM has stopped, Overloaded when the listener was too slow, Unavailable
    when the node stops, PeerUnreachable when the peer is lost.
    """

    async def receive(self) -> bytes:
        """What the guest says next; never empty."""
        ...

    async def send(self, data: bytes) -> None:
        """Type. It waits while the guest does not read. Raises: DeadlineExceeded, too, when that takes too long."""
        ...


class _Listener:
    """A `Console` of this node."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._said = bytearray()
        self._news = trio.Event()
        self._end: TwinshareError | None = None

    def hear(self, data: bytes) -> bool:
        """Whether there was room for it."""
        if len(self._said) + len(data) > BUFFER:
            self.end(Overloaded("this listener of the console reads too slowly; listen again", retry_after=1))
            return False
        self._said += data
        self._news.set()
        return True

    def end(self, why: TwinshareError) -> None:
        self._end = self._end or why
        self._news.set()

    async def receive(self) -> bytes:
        while not self._said:
            if self._end is not None:
                raise self._end
            self._news = trio.Event()
            await self._news.wait()
        said, self._said = bytes(self._said), bytearray()
        return said

    async def send(self, data: bytes) -> None:
        if self._end is not None:
            raise self._end
        await self._line.type(data)


class _Line:
    """The connection to one guest, in a task of its own, and who listens."""

    def __init__(self, record: Record) -> None:
        self.id, self.name = record.domain.id, record.domain.name
        self.listeners: set[_Listener] = set()
        self.scope = trio.CancelScope()
        self.opened = trio.Event()
        self.over: TwinshareError | None = None
        self._stream: trio.SocketStream | None = None
        self._typing = trio.Lock()

    async def run(self, dialling: GuestStreams) -> None:
        """From the dialling to the end, which all listeners are told."""
        why: TwinshareError = Unavailable("the node is stopping; listen again when it is back")
        try:
            with self.scope:
                why = await self._serve(dialling)
        finally:
            self.over = why
            self.opened.set()
            for listener in self.listeners:
                listener.end(why)

    async def _serve(self, dialling: GuestStreams) -> TwinshareError:
        """Returns why it ended."""
        try:
            with trio.fail_after(DIAL_WITHIN):
                stream = await dialling.dial_console(self.id)
        except TwinshareError as error:
            return error
        except OSError as error:
            return Unavailable(f"the console of VM '{self.name}' does not answer: {error.strerror or 'no answer'}")
        except trio.TooSlowError:
            return DeadlineExceeded(f"the console of VM '{self.name}' did not answer within {DIAL_WITHIN:g} s")
        async with stream:
            self._stream = stream
            self.opened.set()
            try:
                while data := await stream.receive_some(CHUNK):
                    self.listeners -= {one for one in self.listeners if not one.hear(data)}
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        return self._stopped()

    async def type(self, data: bytes) -> None:
        """Raises: what ended the console, DeadlineExceeded."""
        for start in range(0, len(data), TYPED):
            try:
                with trio.fail_after(TYPE_WITHIN):
                    async with self._typing:
                        await self._put(data[start : start + TYPED])
            except trio.TooSlowError:
                raise DeadlineExceeded(f"VM '{self.name}' does not read what is typed on its console") from None

    async def _put(self, data: bytes) -> None:
        try:
            if self._stream is not None and self.over is None:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.over or self._stopped() from None

    def _stopped(self) -> WrongState:
        return WrongState(f"VM '{self.name}' has stopped", vm=self.name)


class Consoles:
    """Made by `open_consoles`."""

    def __init__(self, vms: VmContext, audit_sink: AuditSink, nursery: trio.Nursery) -> None:
        self._vms, self._audit, self._nursery = vms, audit_sink, nursery
        self._lines: dict[str, _Line] = {}

    @asynccontextmanager
    async def attach(self, caller: Caller, vm: str) -> AsyncIterator[Console]:
        """Listen to a VM of this node, which the caller must be allowed to change, until the block is left.

        Raises: VmNotFound, Forbidden, WrongState unless it runs, HypervisorDown, Unsupported, Overloaded.
        """
        async with self._audit(caller, "open_console", vm), self._attach(caller, vm) as console:
            yield console

    @asynccontextmanager
    async def _attach(self, caller: Caller, vm: str) -> AsyncIterator[Console]:
        caller.require(Role.OPERATOR, "open_console")
        record = self._vms.owned(caller, vm)
        require_active(record.domain)
        line = self._line(record)
        if len(line.listeners) >= MAX_LISTENERS:
            raise Overloaded(f"{MAX_LISTENERS} listeners of one console at once are allowed", retry_after=5)
        listener = _Listener(line)
        line.listeners.add(listener)
        try:
            await line.opened.wait()
            if line.over is not None:
                raise line.over
            log.info("a console is open", vm=line.name, who=caller.principal)
            yield listener
        finally:
            line.listeners.discard(listener)
            if not line.listeners:
                self._end(line)

    def _line(self, record: Record) -> _Line:
        """The open line to a guest, or a new one."""
        hypervisor = self._vms.hypervisor
        if not isinstance(hypervisor, GuestStreams):
            raise Unsupported(f"the hypervisor '{hypervisor.features.name}' cannot reach its guests' consoles")
        line = self._lines.get(record.domain.id)
        if line is None or line.over is not None:
            line = self._lines[record.domain.id] = _Line(record)
            self._nursery.start_soon(line.run, hypervisor, name=f"console {record.domain.name}")
        return line

    def _end(self, line: _Line) -> None:
        line.scope.cancel()
        if self._lines.get(line.id) is line:
            del self._lines[line.id]


@asynccontextmanager
async def open_consoles(vms: VmContext, audit_sink: AuditSink) -> AsyncIterator[Consoles]:
    """Yield the consoles of a node; they end with the block. `audit_sink` records who attached to which."""
    async with open_background() as nursery:
        yield Consoles(vms, audit_sink, nursery)
