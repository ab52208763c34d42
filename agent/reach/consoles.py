"""The serial consoles of this node's VMs: one connection to QEMU for all clients of a console.

QEMU serves one connection at a time, and a guest blocks while nobody reads its console. So the connection is always
read and each client gets all output. The output waits a moment for a client that is behind; one that then reads nothing
is dropped without the others. Every client may write.
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

MAX_CLIENTS = 8
"""Of one console at once."""
BUFFER = 256 << 10
"""Bytes of output that a client may be behind."""
READ_TIMEOUT = 2.0
"""Seconds that the guest's output waits for a client that is so far behind, before that client is dropped."""
READ_SIZE = 16 << 10
DIAL_TIMEOUT = 15.0
WRITE_TIMEOUT = 30.0
"""Seconds for which a guest may leave input unread, once the buffers of QEMU and the kernel are full."""
WRITE_SIZE = 4096


class Console(Protocol):
    """One client's end of a VM's console, on this node or on a peer.

    Both methods raise the reason for its end: WrongState when the VM has stopped, Overloaded when the client was too
    slow, Unavailable when the node stops, PeerUnreachable when the peer is lost.
    """

    async def receive(self) -> bytes:
        """Wait for output of the guest; never empty."""
        ...

    async def send(self, data: bytes) -> None:
        """Write input, waiting while the guest does not read. Raises: DeadlineExceeded, too, after `WRITE_TIMEOUT`."""
        ...


class _Client:
    """A `Console` of this node."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._output = bytearray()
        self._changed, self._read = trio.Event(), trio.Event()
        self._end: TwinshareError | None = None

    async def feed(self, data: bytes) -> bool:
        """Buffer output; False, and the end of this client, when it is too far behind and reads nothing."""
        with trio.move_on_after(READ_TIMEOUT):
            while len(self._output) + len(data) > BUFFER and self._end is None:
                self._read = trio.Event()
                await self._read.wait()
            self._output += data
            self._changed.set()
            return self._end is None
        self.end(Overloaded("this client of the console reads too slowly; attach again", retry_after=1))
        return False

    def end(self, why: TwinshareError) -> None:
        self._end = self._end or why
        self._changed.set()
        self._read.set()

    async def receive(self) -> bytes:
        while not self._output:
            if self._end is not None:
                raise self._end
            self._changed = trio.Event()
            await self._changed.wait()
        output, self._output = bytes(self._output), bytearray()
        self._read.set()
        return output

    async def send(self, data: bytes) -> None:
        if self._end is not None:
            raise self._end
        await self._connection.write(data)


class _Connection:
    """The connection to one guest's console, read by a task of its own, and its clients."""

    def __init__(self, record: Record) -> None:
        self.id, self.name = record.domain.id, record.domain.name
        self.clients: set[_Client] = set()
        self.scope = trio.CancelScope()
        self.opened = trio.Event()
        self.over: TwinshareError | None = None
        self._stream: trio.SocketStream | None = None
        self._write_lock = trio.Lock()

    async def run(self, guests: GuestStreams) -> None:
        """Dial, read until the end, and end all clients with its reason."""
        why: TwinshareError = Unavailable("the node is stopping; attach again when it is back")
        try:
            with self.scope:
                why = await self._serve(guests)
        finally:
            self.over = why
            self.opened.set()
            for client in self.clients:
                client.end(why)

    async def _serve(self, guests: GuestStreams) -> TwinshareError:
        """Return why the connection ended."""
        try:
            with trio.fail_after(DIAL_TIMEOUT):
                stream = await guests.dial_console(self.id)
        except TwinshareError as error:
            return error
        except OSError as error:
            return Unavailable(f"the console of VM '{self.name}' does not answer: {error.strerror or 'no answer'}")
        except trio.TooSlowError:
            return DeadlineExceeded(f"the console of VM '{self.name}' did not answer within {DIAL_TIMEOUT:g} s")
        async with stream:
            self._stream = stream
            self.opened.set()
            try:
                while data := await stream.receive_some(READ_SIZE):
                    self.clients -= {client for client in [*self.clients] if not await client.feed(data)}
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        return self._stopped()

    async def write(self, data: bytes) -> None:
        """Raises: what ended the console, DeadlineExceeded."""
        for start in range(0, len(data), WRITE_SIZE):
            try:
                with trio.fail_after(WRITE_TIMEOUT):
                    async with self._write_lock:
                        await self._send(data[start : start + WRITE_SIZE])
            except trio.TooSlowError:
                raise DeadlineExceeded(f"VM '{self.name}' does not read what is typed on its console") from None

    async def _send(self, data: bytes) -> None:
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
        self._connections: dict[str, _Connection] = {}

    @asynccontextmanager
    async def attach(self, caller: Caller, vm: str) -> AsyncIterator[Console]:
        """Attach to the console of a VM that the caller may change, until the block is left.

        Raises: VmNotFound, Forbidden, WrongState unless it runs, HypervisorDown, Unsupported, Overloaded.
        """
        async with self._audit(caller, "open_console", vm), self._attach(caller, vm) as console:
            yield console

    @asynccontextmanager
    async def _attach(self, caller: Caller, vm: str) -> AsyncIterator[Console]:
        caller.require(Role.OPERATOR, "open_console")
        record = self._vms.owned(caller, vm)
        require_active(record.domain)
        connection = self._connect(record)
        if len(connection.clients) >= MAX_CLIENTS:
            raise Overloaded(f"{MAX_CLIENTS} clients of one console at once are allowed", retry_after=5)
        client = _Client(connection)
        connection.clients.add(client)
        try:
            await connection.opened.wait()
            if connection.over is not None:
                raise connection.over
            log.info("console attached", vm=connection.name, principal=caller.principal)
            yield client
        finally:
            connection.clients.discard(client)
            client.end(Unavailable("this client has left"))
            if not connection.clients:
                self._end(connection)

    def _connect(self, record: Record) -> _Connection:
        """Return the connection to a console, and dial where there is none."""
        hypervisor = self._vms.hypervisor
        if not isinstance(hypervisor, GuestStreams):
            raise Unsupported(f"the hypervisor '{hypervisor.features.name}' cannot reach its guests' consoles")
        connection = self._connections.get(record.domain.id)
        if connection is None or connection.over is not None:
            connection = self._connections[record.domain.id] = _Connection(record)
            self._nursery.start_soon(connection.run, hypervisor, name=f"console {record.domain.name}")
        return connection

    def _end(self, connection: _Connection) -> None:
        connection.scope.cancel()
        if self._connections.get(connection.id) is connection:
            del self._connections[connection.id]


@asynccontextmanager
async def open_consoles(vms: VmContext, audit_sink: AuditSink) -> AsyncIterator[Consoles]:
    """Yield the consoles of a node; they end with the block. `audit_sink` records who attached to which."""
    async with open_background() as nursery:
        yield Consoles(vms, audit_sink, nursery)
