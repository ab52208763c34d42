"""`GuestService` for one caller: what is asked and answered at once. Streams are in access.py."""

from __future__ import annotations

import math
from base64 import b64decode, b64encode

import trio

from ...protocols.access import Caller, account_of
from ...protocols.errors import GuestRefused, GuestUnreachable, InvalidRequest, Overloaded
from ...protocols.guest import (
    MAX_COLLECTED,
    DirectoryRequest,
    ExecRequest,
    ExecResult,
    FileEntry,
    FileList,
    GuestReport,
    GuestSession,
    SessionState,
    path_bytes,
    text_or_base64,
)
from ...protocols.guest_channel import ERR, EndReply
from ...protocols.guest_service import MAX_LISTED
from ..vm.context import VmContext
from ..vm.record import Record
from .guests import Guests
from .replies import file_entry, refusal
from .session import HostedSession
from .signals import send_signal
from .vm_guest import OPEN_WITHIN, VmGuest

MAX_SESSIONS = 256
"""Sessions of one account that run at once on this node."""
READ_SIZE = 256 << 10
CALL_WITHIN = 300.0
"""Seconds for a guest to list, make or remove files."""
END_WITHIN = 30.0
"""Seconds after a command's timeout within which the guest has to say that it has ended."""


class GuestOperations:
    """`GuestService`: an operator's own VMs, and for admins all."""

    def __init__(self, vms: VmContext, guests: Guests, caller: Caller) -> None:
        self._vms, self._guests, self._caller = vms, guests, caller

    async def exec_vm(self, vm: str, request: ExecRequest) -> ExecResult:
        session = await start_session(self._guests, self._caller, self._owned(vm), request)
        if request.detach:
            return ExecResult(session=session.record.id)
        await self._require_started(session, vm)
        limit = None if request.timeout is None else request.timeout + END_WITHIN
        with trio.move_on_after(limit or math.inf):
            return await _collect(session)
        why = f"the guest of VM '{vm}' does not say how the command ended"
        raise GuestUnreachable(why, vm=vm, session=session.record.id)

    async def _require_started(self, session: HostedSession, vm: str) -> None:
        """Raises: GuestUnreachable; the session is there all the same."""
        with trio.move_on_after(OPEN_WITHIN) as scope:
            await session.wait_started()
        if scope.cancelled_caught:
            why = f"the guest of VM '{vm}' did not start the command within {OPEN_WITHIN:g} s"
            raise GuestUnreachable(why, vm=vm, session=session.record.id)

    async def list_vm_sessions(self, vm: str) -> list[GuestSession]:
        guest = self._guest(vm)
        sessions = sorted(guest.sessions.values(), key=lambda session: session.record.started_at)
        return [session.view(guest.name) for session in sessions]

    async def get_session(self, vm: str, session: str) -> GuestSession:
        guest = self._guest(vm)
        return guest.session(session).view(guest.name)

    async def end_vm_session(self, vm: str, session: str) -> GuestSession:
        guest = self._guest(vm)
        found = guest.session(session)
        await guest.end_session(found)
        return found.view(guest.name)

    async def signal_session(self, vm: str, session: str, signal: str) -> GuestSession:
        guest = self._guest(vm)
        found = guest.session(session)
        send_signal(found, signal)
        return found.view(guest.name)

    async def list_files(
        self,
        vm: str,
        path: str = "",
        path_base64: str | None = None,
        after: str | None = None,
        limit: int = MAX_LISTED,
    ) -> FileList:
        try:
            last = b64decode(after or "", validate=True)
        except ValueError:
            raise InvalidRequest("after must be the `next` of the page before", path="after") from None
        listed = path_bytes(path or ("" if path_base64 else "."), path_base64)
        end = await self._call(vm, "list", listed, after=last, limit=limit)
        files = end.files or []
        return FileList(
            entry=_entry(end),
            files=[file_entry(file) for file in files],
            next=b64encode(files[-1].name).decode() if end.more and files else None,
        )

    async def make_directory(self, vm: str, request: DirectoryRequest) -> FileEntry:
        fields = {name: getattr(request, name) for name in ("mode", "modified", "parents", "user")}
        return _entry(await self._call(vm, "make", path_bytes(request.path, request.path_base64), **fields))

    async def remove_file(
        self, vm: str, path: str = "", path_base64: str | None = None, recursive: bool = False
    ) -> FileEntry:
        return _entry(await self._call(vm, "remove", path_bytes(path, path_base64), recursive=recursive))

    async def show_guest(self, vm: str) -> GuestReport:
        return self._guest(vm).view_report()

    def _owned(self, vm: str) -> Record:
        return self._vms.owned(self._caller, vm)

    def _guest(self, vm: str) -> VmGuest:
        return self._guests.of(self._owned(vm))

    async def _call(self, vm: str, do: str, path: bytes, **fields: object) -> EndReply:
        """Raises: FileNotFound, GuestRefused, GuestUnreachable, WrongState."""
        guest = self._guests.running(self._owned(vm))
        stream = await guest.open({"kind": "call", "do": do, "path": path, **fields})
        try:
            with trio.fail_after(CALL_WITHIN):
                while await stream.receive() is not None:
                    pass
        except trio.TooSlowError:
            raise GuestUnreachable(f"the guest of VM '{vm}' did not answer within {CALL_WITHIN:g} s", vm=vm) from None
        finally:
            guest.close(stream)
        if stream.end is None or stream.end.errno is not None:
            raise refusal(stream.end or EndReply(offset=0), path.decode(errors="replace"))
        return stream.end


async def start_session(guests: Guests, caller: Caller, record: Record, request: ExecRequest) -> HostedSession:
    """Start a command in a VM's guest. Raises: GuestUnreachable, WrongState, Overloaded, InsufficientResources."""
    if guests.sessions_of(account_of(caller.principal)) >= MAX_SESSIONS:
        raise Overloaded(f"{MAX_SESSIONS} sessions of one principal at once are allowed; end some", retry_after=5)
    return await guests.running(record).start_session(request, caller.principal)


async def _collect(session: HostedSession) -> ExecResult:
    """Wait for the end of a command; what is too much of its output is read and dropped, so that it goes on."""
    kept = {False: bytearray(), True: bytearray()}
    truncated = False
    async with session.reading(0) as reader:
        while pieces := await session.read(reader, READ_SIZE):
            for _, channel, data in pieces:
                part = kept[channel == ERR]
                room = MAX_COLLECTED - len(part)
                part += data[:room]
                truncated = truncated or len(data) > room
    record = session.record
    if record.reason is not None:
        kind = GuestUnreachable if record.state is SessionState.LOST else GuestRefused
        raise kind(record.reason, session=record.id)
    stdout, stdout_base64 = text_or_base64(bytes(kept[False]))
    stderr, stderr_base64 = text_or_base64(bytes(kept[True]))
    return ExecResult(
        session=record.id,
        exit_code=record.exit_code,
        signal=record.signal,
        stdout=stdout,
        stderr=stderr,
        stdout_base64=stdout_base64,
        stderr_base64=stderr_base64,
        truncated=truncated,
    )


def _entry(end: EndReply) -> FileEntry:
    if end.file is None:
        raise GuestRefused("the guest did not say which file that was")
    return file_entry(end.file)
