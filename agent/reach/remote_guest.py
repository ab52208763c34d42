"""Streams into the guests of peers' VMs: a stream to the peer, at whose far end one is opened as on the node itself.

The owner of the VM authorises: with the lower of the peer's role in its certificate and the role of its caller.
Back-pressure is the stream's own: a client that does not read stops its own stream, and no other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeVar

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Role
from ...protocols.errors import Overloaded, PeerMisbehaved, PeerUnreachable, TwinshareError
from ...protocols.guest_stream import (
    HEAD,
    PIECE,
    PROTOCOL,
    Failed,
    Finished,
    FromGuest,
    GuestStreamRequest,
    Input,
    Opened,
    Output,
    StreamRequest,
    ToGuest,
    decode_from_owner,
    decode_request,
    decode_to_guest,
    encode_message,
    message_length,
)
from ..guest.access import NAMES, GuestAccess
from ..guest.port import GuestStream
from ..p2p.host import PeerId, Stream
from ..p2p.mesh_client import MeshClient

log = structlog.get_logger(__name__)

OPENING = 60.0
"""Seconds for the first message each way: a guest that boots is waited for."""
REQUEST_TIMEOUT = 15.0
CLOSE_TIMEOUT = 5.0
MAX_STREAMS = 512
"""Streams that a peer may have open at once."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, PeerMisbehaved)
Message = TypeVar("Message")


class PeerAudit(Protocol):
    """Writes down a call to a peer."""

    def __call__(
        self, caller: Caller, what: str, on: str = "", *, at_peer: str = ""
    ) -> AbstractAsyncContextManager[None]: ...


class _RemoteStream:
    """A `GuestStream` at a peer."""

    def __init__(self, stream: Stream, opened: Opened) -> None:
        self._reader, self._stream = _MessageReader(stream), stream
        self.opened = opened

    async def receive(self) -> FromGuest:
        try:
            message = await self._reader.receive(decode_from_owner)
        except _BROKEN:
            raise self._lost() from None
        if isinstance(message, Failed):
            raise TwinshareError.from_wire(message.error)
        if isinstance(message, Opened):
            raise PeerMisbehaved("the peer opens a stream twice", peer=self._stream.peer_id)
        return message

    async def send(self, message: ToGuest) -> None:
        try:
            for part in _parts(message):
                await self._stream.send_all(encode_message(part))
        except _BROKEN:
            raise self._lost() from None

    def _lost(self) -> PeerUnreachable:
        return PeerUnreachable("the connection with the peer was lost", peer=self._stream.peer_id)


@asynccontextmanager
async def open_remote_guest_stream(
    mesh: MeshClient, record: PeerAudit, caller: Caller, peer: PeerId, vm: str, request: StreamRequest
) -> AsyncIterator[GuestStream]:
    """Open a stream until the block is left. Raises: what the owner raises; P2pStopped, PeerUnreachable."""
    name = NAMES[type(request)]
    asked = GuestStreamRequest(vm=vm, role=caller.role, principal=caller.delegate, open=request)
    async with record(caller, name, vm, at_peer=peer):
        caller.require(Role.OPERATOR, name)
        running = mesh.require_running()
        await running.sessions.session_to(peer)
        stream = await running.host.open_stream(peer, PROTOCOL)
        try:
            yield await _ask(stream, asked)
        finally:
            stream.reset()
            await trio.aclose_forcefully(stream)


async def _ask(stream: Stream, request: GuestStreamRequest) -> _RemoteStream:
    """Raises: what the owner raises; PeerUnreachable, PeerMisbehaved."""
    try:
        with trio.fail_after(OPENING):
            await stream.send_all(encode_message(request))
            answer = await _MessageReader(stream).receive(decode_from_owner)
    except trio.TooSlowError:
        raise PeerUnreachable(f"the peer did not answer within {OPENING:g} s", peer=stream.peer_id) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise PeerUnreachable("the connection with the peer was lost", peer=stream.peer_id) from None
    if isinstance(answer, Failed):
        raise TwinshareError.from_wire(answer.error)
    if not isinstance(answer, Opened):
        raise PeerMisbehaved("the peer sends output before it has opened the stream", peer=stream.peer_id)
    return _RemoteStream(stream, answer)


class GuestStreamServer:
    """The owner's end."""

    def __init__(self, access: GuestAccess) -> None:
        self._access = access
        self._open: dict[PeerId, int] = {}

    async def serve(self, caller: Caller, stream: Stream) -> None:
        """One stream, from its first message to its end; `caller` is the peer."""
        peer = caller.principal
        self._open[peer] = self._open.get(peer, 0) + 1
        try:
            error = await self._serve(caller, stream)
            if error is not None:
                await stream.send_all(encode_message(Failed(error=error.to_wire())))
                await _close(stream)
        except (*_BROKEN, trio.TooSlowError) as lost:
            log.debug("a peer's guest stream ended", peer=peer, why=str(lost))
            stream.reset()
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _serve(self, caller: Caller, stream: Stream) -> TwinshareError | None:
        """Returns the error with which it ended. Raises: trio.BrokenResourceError, PeerMisbehaved, TooSlowError."""
        reader = _MessageReader(stream)
        with trio.fail_after(REQUEST_TIMEOUT):
            request = await reader.receive(decode_request)
        try:
            if self._open[caller.principal] > MAX_STREAMS:
                raise Overloaded(f"{MAX_STREAMS} guest streams of a peer at once are allowed", retry_after=5)
            asker = caller.acting_for(request.principal, request.role)
            async with self._access.open(asker, request.vm, request.open) as guest:
                await stream.send_all(encode_message(guest.opened))
                return await _carry(guest, stream, reader)
        except PeerMisbehaved:
            raise
        except TwinshareError as error:
            return error


async def _carry(guest: GuestStream, stream: Stream, reader: _MessageReader) -> TwinshareError | None:
    """Messages both ways, until the guest's end or the peer's; returns the error that ended it."""
    ended: list[TwinshareError] = []

    async def to_guest() -> None:
        try:
            while True:
                await guest.send(await reader.receive(decode_to_guest))
        except _BROKEN:
            scope.cancel()
        except TwinshareError as error:
            ended.append(error)
            scope.cancel()

    async def from_guest() -> None:
        try:
            while True:
                message = await guest.receive()
                for part in _parts(message):
                    await stream.send_all(encode_message(part))
                if isinstance(message, Finished):
                    await stream.send_eof()
                    await trio.sleep(CLOSE_TIMEOUT)  # `to_guest` sees the peer's end, and cancels this
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            stream.reset()
        except TwinshareError as error:
            ended.append(error)
        scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(to_guest)
            nursery.start_soon(from_guest)
    return ended[0] if ended else None


def _parts(message: msgspec.Struct) -> list[msgspec.Struct]:
    """The messages that carry one, none with more content than fits."""
    if isinstance(message, Output) and len(message.data) > PIECE:
        cuts = range(0, len(message.data), PIECE)
        return [
            Output(offset=message.offset + at, data=message.data[at : at + PIECE], channel=message.channel)
            for at in cuts
        ]
    if isinstance(message, Input) and len(message.data) > PIECE:
        first = message.offset
        return [
            Input(data=message.data[at : at + PIECE], offset=None if first is None else first + at)
            for at in range(0, len(message.data), PIECE)
        ]
    return [message]


class _MessageReader:
    """Cuts a stream into messages; `receive` may be cancelled and called again."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._data = bytearray()

    async def receive(self, decode: Callable[[bytes], Message]) -> Message:
        """Raises: PeerMisbehaved, trio.BrokenResourceError."""
        await self._fill(HEAD.size)
        end = HEAD.size + message_length(bytes(self._data[: HEAD.size]))
        await self._fill(end)
        body = bytes(self._data[HEAD.size : end])
        del self._data[:end]
        return decode(body)

    async def _fill(self, size: int) -> None:
        while len(self._data) < size:
            part = await self._stream.receive_some(size - len(self._data))
            if not part:
                raise PeerMisbehaved("the peer closed a stream where a message was due")
            self._data += part


async def _close(stream: Stream) -> None:
    """A stream that is closed while the peer still sends is reset, its last message too: so wait for the peer's end."""
    await stream.send_eof()
    with trio.move_on_after(CLOSE_TIMEOUT):
        while await stream.receive_some(PIECE):
            pass
