"""Streams into the guests of this node: sessions that are attached to, content of files, connections."""

from __future__ import annotations

import errno
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from msgspec import structs

from ...protocols.access import AuditSink, Caller, Role
from ...protocols.errors import GuestRefused, GuestUnreachable, InvalidRequest, TwinshareError, Unsupported, WrongState
from ...protocols.guest import SessionState
from ...protocols.guest_channel import CONTENT_WINDOW, END, ERR, WINDOW, EndReply
from ...protocols.guest_stream import (
    AttachSession,
    Channel,
    DialPort,
    DialSsh,
    Finished,
    FromGuest,
    Input,
    InputEnd,
    InputTaken,
    Opened,
    Output,
    OutputEnd,
    ReadFile,
    Resize,
    SendSignal,
    StreamRequest,
    ToGuest,
    WriteFile,
)
from ..vm.context import VmContext
from ..vm.record import Record
from .guests import Guests
from .network import NetworkStream
from .port import GuestStream
from .replies import file_entry, refusal
from .session import HostedSession, Reader
from .signals import send_signal
from .stream import ChannelStream
from .vm_guest import VmGuest

log = structlog.get_logger(__name__)

READ_SIZE = 256 << 10
TAKEN_EVERY = 256 << 10
"""Bytes of a session's input after which its client hears that the guest has them."""
MAX_WRITERS = 64
"""Clients of a session whose input is known when they attach again."""
NAMES: dict[type, str] = {
    AttachSession: "attach_session",
    ReadFile: "read_file",
    WriteFile: "write_file",
    DialPort: "dial_guest",
    DialSsh: "dial_guest_ssh",
}
"""How the audit log calls each."""


class _SessionStream:
    """A client that is attached to a session, the first time as no `writer`."""

    def __init__(self, guest: VmGuest, session: HostedSession, reader: Reader, writer: str) -> None:
        self._session, self._reader = session, reader
        self._pieces: list[tuple[int, int, bytes]] = []
        self._input_taken = session.input_received
        accepted = session.stream.input_offset if session.stream else self._input_taken
        self._writer = writer or secrets.token_hex(8)
        self._input_end = session.input_ends.get(self._writer, accepted)
        self._remember_input()
        self.opened = Opened(
            offset=reader.offset,
            input_offset=min(self._input_taken, self._input_end),
            input_end=accepted,
            writer=self._writer,
            session=session.view(guest.name),
        )

    async def receive(self) -> FromGuest:
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            wanted = self._input_taken + TAKEN_EVERY
            await self._session.wait_for_output(self._reader, wanted)
            if self._session.input_received >= wanted:
                self._input_taken = self._session.input_received
                return InputTaken(offset=self._input_taken)
            self._pieces = await self._session.read(self._reader, READ_SIZE)
            self._pieces.reverse()
        if self._pieces:
            offset, channel, data = self._pieces.pop()
            return Output(offset=offset, data=data, channel=Channel.STDERR if channel == ERR else Channel.STDOUT)
        record = self._session.record
        if record.state is not SessionState.ENDED or record.reason is not None:
            raise GuestUnreachable(record.reason or "nobody knows how the command ended", session=record.id)
        return Finished(exit_code=record.exit_code, signal=record.signal)

    async def send(self, message: ToGuest) -> None:
        stream = self._session.stream
        if isinstance(message, SendSignal):
            send_signal(self._session, message.signal)
        elif stream is None:
            # It has ended, and nobody reads it; or the guest agent runs it.
            if isinstance(message, Input) and not self._session.ended:
                raise GuestUnreachable("the QEMU guest agent gives a command no input", session=self._session.record.id)
        elif isinstance(message, Input):
            async with self._session.input_turn:
                await self._send_input(stream, message)
        elif isinstance(message, InputEnd):
            stream.close_input()
        else:
            stream.control("resize", columns=message.columns, rows=message.rows)

    async def _send_input(self, stream: ChannelStream, message: Input) -> None:
        """Input at an offset follows the client's own: bytes of another client in its place are not taken for it.

        Raises: WrongState when another client has sent input meanwhile, InvalidRequest.
        """
        end = stream.input_offset
        if message.offset is not None and end != self._input_end:
            if message.offset + len(message.data) <= self._input_end:
                return  # it was taken before the other's
            raise WrongState(
                f"another client has sent input to session '{self._session.record.id}', which is now at {end};"
                " attach again to send more",
                offset=end,
            )
        try:
            await send_input(stream, message)
        finally:
            self._input_end = stream.input_offset
            self._remember_input()

    def _remember_input(self) -> None:
        ends = self._session.input_ends
        ends.pop(self._writer, None)
        ends[self._writer] = self._input_end
        if len(ends) > MAX_WRITERS:
            del ends[next(iter(ends))]


class _ContentStream:
    """A file or a connection. Output is acknowledged to the guest when it is received here."""

    def __init__(self, stream: ChannelStream, opened: Opened, what: str) -> None:
        self.stream, self._what = stream, what
        self.opened = opened

    async def receive(self) -> FromGuest:
        await trio.lowlevel.checkpoint()
        piece = await self.stream.receive()
        if piece is not None:
            offset, channel, data = piece
            self.stream.acknowledge(offset + len(data))
            return OutputEnd() if channel == END else Output(offset=self.opened.offset + offset, data=data)
        end = self.stream.end or EndReply(offset=0)
        if end.errno is not None:
            raise refusal(end, self._what)
        return Finished(file=None if end.file is None else file_entry(end.file), digest=end.digest)

    async def send(self, message: ToGuest) -> None:
        if isinstance(message, Input):
            await self._send_input(message)
        elif isinstance(message, InputEnd):
            self.stream.close_input()
        elif isinstance(message, Resize | SendSignal):
            raise InvalidRequest("only a session has a window and takes signals")

    async def _send_input(self, message: Input) -> None:
        await send_input(self.stream, message)


class _FileStream(_ContentStream):
    """A file whose content comes and goes with its CRC-32: the guest, for which hashes are dear, computes none."""

    def __init__(self, stream: ChannelStream, opened: Opened, what: str) -> None:
        super().__init__(stream, opened, what)
        self._digest = hashlib.blake2b(digest_size=32)

    async def receive(self) -> FromGuest:
        message = await super().receive()
        if isinstance(message, Output):
            self._digest.update(message.data)
        elif isinstance(message, Finished) and message.digest is None and not self.opened.input_offset:
            message = structs.replace(message, digest=self._digest.hexdigest())
        return message

    async def _send_input(self, message: Input) -> None:
        self._digest.update(await send_input(self.stream, message))


class GuestAccess:
    """Opens streams for callers. `audit_sink` writes down who opened which."""

    def __init__(self, vms: VmContext, guests: Guests, audit_sink: AuditSink) -> None:
        self._vms, self._guests, self._record = vms, guests, audit_sink

    @asynccontextmanager
    async def open(self, caller: Caller, vm: str, request: StreamRequest) -> AsyncIterator[GuestStream]:
        """Open a stream until the block is left. What a connection or a file runs in the guest ends with it.

        Raises: VmNotFound, Forbidden, WrongState, HypervisorDown, GuestUnreachable, SessionNotFound, FileNotFound,
        GuestRefused.
        """
        name = NAMES[type(request)]
        caller.require(Role.OPERATOR, name)
        async with self._record(caller, name, vm):
            record = self._vms.owned(caller, vm)
            if isinstance(request, AttachSession):
                async with self._attach(self._guests.of(record), request) as attached:
                    yield attached
            else:
                async with self._open(self._guests.running(record), record, request) as content:
                    yield content

    @asynccontextmanager
    async def _attach(self, guest: VmGuest, request: AttachSession) -> AsyncIterator[GuestStream]:
        session = guest.session(request.session)
        if session.stream is not None:
            await session.stream.wait_synced()
        async with session.reading(session.output.start if request.offset is None else request.offset) as reader:
            yield _SessionStream(guest, session, reader, request.writer)

    @asynccontextmanager
    async def _open(self, guest: VmGuest, record: Record, request: StreamRequest) -> AsyncIterator[GuestStream]:
        try:
            stream = await self._open_channel(guest, request)
        except (GuestUnreachable, GuestRefused) as error:
            connection = await self._dial_network(guest, record, request, error)
        else:
            try:
                yield stream
            finally:
                guest.close(stream.stream)
            return
        async with connection:
            yield NetworkStream(connection)

    async def _dial_network(
        self, guest: VmGuest, record: Record, request: StreamRequest, why: TwinshareError
    ) -> trio.SocketStream:
        """Connect to a port that is not served on the guest's loopback. Raises: `why`."""
        if not isinstance(request, DialPort) or (isinstance(why, GuestRefused) and not guest.listens(request.port)):
            raise why
        try:
            return await self._vms.forwards.dial(record, request.port)
        except (Unsupported, OSError):
            raise why from None

    async def _open_channel(self, guest: VmGuest, request: StreamRequest) -> _ContentStream:
        """Raises: GuestUnreachable, GuestRefused, FileNotFound."""
        fields, what = _fields(request)
        of_file = isinstance(request, ReadFile | WriteFile)
        stream = await guest.open(fields, CONTENT_WINDOW if of_file else WINDOW)
        try:
            if stream.end is not None and stream.end.errno is not None:
                raise _refused(request, stream.end, what, guest.name)
            reply = await stream.wait_opened()
            _check_received(request, reply.received)
            opened = Opened(
                offset=request.offset if isinstance(request, ReadFile) else 0,
                input_offset=reply.received,
                file=None if reply.file is None else file_entry(reply.file),
            )
            return (_FileStream if of_file and stream.summed else _ContentStream)(stream, opened, what)
        except BaseException:
            guest.close(stream)
            raise


def _fields(request: StreamRequest) -> tuple[dict[str, object], str]:
    """The message that opens a stream in the guest, and what it is about in a word."""
    match request:
        case ReadFile():
            fields = {
                "kind": "read",
                "path": request.path,
                "offset": request.offset,
                "length": request.length,
                "summed": True,
            }
            return fields, request.path.decode(errors="replace")
        case WriteFile():
            fields = {
                "kind": "write",
                "path": request.path,
                "size": request.size,
                "mode": request.mode,
                "modified": request.modified,
                "user": request.user,
                "upload": request.upload,
                "summed": True,
            }
            return fields, request.path.decode(errors="replace")
        case DialPort():
            return {"kind": "dial", "port": request.port}, f"port {request.port}"
        case _:
            return {"kind": "ssh"}, "ssh"


def _check_received(request: StreamRequest, received: int) -> None:
    """Only of an upload a guest can have something already. Raises: GuestRefused."""
    most = request.size if isinstance(request, WriteFile) and request.upload else 0
    if most is not None and received > most:
        raise GuestRefused(f"the guest says that it has {received} bytes of what was never sent")


def _refused(request: StreamRequest, end: EndReply, what: str, vm: str) -> TwinshareError:
    if isinstance(request, DialPort) and end.errno == errno.ECONNREFUSED:
        return GuestRefused(f"nothing in the guest listens on port {request.port}", port=request.port)
    if isinstance(request, DialSsh) and end.errno == errno.ENOENT:
        return GuestUnreachable(f"the guest of VM '{vm}' has no SSH server; install openssh-server or dropbear", vm=vm)
    return refusal(end, what)


async def send_input(stream: ChannelStream, message: Input) -> bytes:
    """Send what the guest does not have, and return it. Raises: InvalidRequest when bytes are missing before it."""
    if stream.end is not None:
        return b""  # it ended while this was on its way, and did not take what came before; `receive` says why
    data = message.data
    if message.offset is not None:
        if message.offset > stream.input_offset:
            raise InvalidRequest(f"input goes on at {stream.input_offset}, not at {message.offset}", path="offset")
        data = data[stream.input_offset - message.offset :]
    await stream.send(data)
    return data
