"""The screens of this node's VMs: a connection to QEMU's VNC server for each viewer, as bytes of RFB (RFC 6143)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from ...protocols.access import AuditSink, Caller, Role
from ...protocols.errors import DeadlineExceeded, Overloaded, Unavailable, Unsupported, WrongState
from ..hypervisor.port import GuestStreams
from ..vm.context import VmContext
from ..vm.lifecycle import require_active
from ..vm.record import Record
from .consoles import Console

log = structlog.get_logger(__name__)

MAX_VIEWERS = 8
"""Of one VM, at once."""
READ_SIZE = 64 << 10
DIAL_TIMEOUT = 15.0
WRITE_TIMEOUT = 30.0
"""Seconds for which QEMU may leave a viewer's messages unread."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class _Screen:
    """A viewer's end of a screen of this node."""

    def __init__(self, stream: trio.SocketStream, name: str) -> None:
        self._stream, self._name = stream, name

    async def receive(self) -> bytes:
        try:
            data = await self._stream.receive_some(READ_SIZE)
        except _BROKEN:
            data = b""
        if not data:
            raise self._stopped()
        return bytes(data)

    async def send(self, data: bytes) -> None:
        try:
            with trio.fail_after(WRITE_TIMEOUT):
                await self._stream.send_all(data)
        except trio.TooSlowError:
            raise DeadlineExceeded(f"the screen of VM '{self._name}' does not read what it is sent") from None
        except _BROKEN:
            raise self._stopped() from None

    def _stopped(self) -> WrongState:
        return WrongState(f"VM '{self._name}' has stopped", vm=self._name)


class Screens:
    """The screens of a node; `audit_sink` records who attached to which."""

    def __init__(self, vms: VmContext, audit_sink: AuditSink) -> None:
        self._vms, self._audit = vms, audit_sink
        self._viewers: Counter[str] = Counter()

    @asynccontextmanager
    async def attach(self, caller: Caller, vm: str) -> AsyncIterator[Console]:
        """Connect to the screen of a VM that the caller may change, until the block is left.

        Raises: VmNotFound, Forbidden, WrongState unless it runs, HypervisorDown, Unsupported, Overloaded, Unavailable,
        DeadlineExceeded.
        """
        async with self._audit(caller, "open_screen", vm):
            caller.require(Role.OPERATOR, "open_screen")
            record = self._vms.owned(caller, vm)
            require_active(record.domain)
            async with self._place(record), await self._dial(record) as stream:
                log.info("screen attached", vm=record.domain.name, principal=caller.principal)
                yield _Screen(stream, record.domain.name)

    @asynccontextmanager
    async def _place(self, record: Record) -> AsyncIterator[None]:
        id = record.domain.id
        if self._viewers[id] >= MAX_VIEWERS:
            raise Overloaded(f"{MAX_VIEWERS} viewers of one screen at once are allowed", retry_after=5)
        self._viewers[id] += 1
        try:
            yield
        finally:
            self._viewers[id] -= 1
            if not self._viewers[id]:
                del self._viewers[id]

    async def _dial(self, record: Record) -> trio.SocketStream:
        hypervisor, name = self._vms.hypervisor, record.domain.name
        if not isinstance(hypervisor, GuestStreams):
            raise Unsupported(f"the hypervisor '{hypervisor.features.name}' cannot reach its guests' screens")
        try:
            with trio.fail_after(DIAL_TIMEOUT):
                return await hypervisor.dial_screen(record.domain.id)
        except OSError as error:
            raise Unavailable(f"the screen of VM '{name}' does not answer: {error.strerror or 'no answer'}") from None
        except trio.TooSlowError:
            raise DeadlineExceeded(f"the screen of VM '{name}' did not answer within {DIAL_TIMEOUT:g} s") from None
