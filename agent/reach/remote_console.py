"""The console or the screen of a peer's VM: a stream to the peer, which attaches to it there.

The owner of the VM authorises: with the lower of the peer's role in its certificate and the role of its caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import structlog
import trio

from ...protocols.access import Caller
from ...protocols.console import PROTOCOL, ConsoleFrame, ConsoleRequest, pieces
from ...protocols.errors import PeerMisbehaved, PeerUnreachable, TwinshareError
from ...protocols.tunnel import encode
from ..p2p.host import PeerId, Stream
from ..p2p.mesh_client import MeshClient
from .consoles import READ_SIZE, Console
from .tunnel import OPENING, ask_on_stream, receive_frame

Attach = Callable[[Caller, str], AbstractAsyncContextManager[Console]]

log = structlog.get_logger(__name__)

WRITE_TIMEOUT = 20.0
"""Seconds that a peer may take for one piece of output."""
CLOSE_TIMEOUT = 5.0
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, PeerMisbehaved)


class _RemoteConsole:
    """A `Console` at a peer."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def receive(self) -> bytes:
        while True:
            try:
                frame = await receive_frame(self._stream, ConsoleFrame)
            except _BROKEN:
                raise self._lost() from None
            if frame.error is not None:
                raise TwinshareError.from_wire(frame.error)
            if frame.data:
                return frame.data

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(b"".join(map(encode, pieces(data))))
        except _BROKEN:
            raise self._lost() from None

    def _lost(self) -> PeerUnreachable:
        return PeerUnreachable("the connection with the peer was lost", peer=self._stream.peer_id)


@asynccontextmanager
async def open_remote_console(
    mesh: MeshClient, peer: PeerId, request: ConsoleRequest, protocol: str = PROTOCOL
) -> AsyncIterator[Console]:
    """Attach until the block is left. Raises: what the owner raises; P2pStopped, PeerUnreachable."""
    _, stream = await ask_on_stream(mesh, peer, protocol, request, ConsoleFrame)
    try:
        yield _RemoteConsole(stream)
    finally:
        stream.reset()
        await trio.aclose_forcefully(stream)


class ConsoleServer:
    """The owner's end; `attach` opens what the peer has asked for."""

    def __init__(self, attach: Attach) -> None:
        self._attach = attach

    async def serve(self, caller: Caller, stream: Stream) -> None:
        """Serve one console, from its first frame to its end; `caller` is the peer."""
        try:
            with trio.fail_after(OPENING):
                request = await receive_frame(stream, ConsoleRequest)
            try:
                asker = caller.acting_for(request.principal, request.role)
                async with self._attach(asker, request.vm) as console:
                    await _write(stream, ConsoleFrame())
                    why = await _carry(console, stream)
            except TwinshareError as error:
                why = error
            if why is not None:
                await _write(stream, ConsoleFrame(error=why.to_wire()))
                await _drain(stream)
        except (*_BROKEN, trio.TooSlowError) as error:
            log.debug("a peer's console ended", peer=caller.principal, why=str(error))
            stream.reset()


async def _carry(console: Console, stream: Stream) -> TwinshareError | None:
    """Copy bytes both ways; return why the console ended, or None when the peer has left."""
    ended: list[TwinshareError] = []

    async def forward_input() -> None:
        try:
            while True:
                frame = await receive_frame(stream, ConsoleFrame)
                await console.send(frame.data)
        except _BROKEN:
            scope.cancel()
        except TwinshareError as error:
            ended.append(error)
            scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward_input)
            try:
                while True:
                    await _write(stream, *pieces(await console.receive()))
            except TwinshareError as error:
                ended.append(error)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                stream.reset()
            scope.cancel()
    return ended[0] if ended else None


async def _drain(stream: Stream) -> None:
    """Read until the peer closes: closing a stream with unread input would reset it, and lose our last frame."""
    await stream.send_eof()
    with trio.move_on_after(CLOSE_TIMEOUT):
        while await stream.receive_some(READ_SIZE):
            pass


async def _write(stream: Stream, *frames: ConsoleFrame) -> None:
    """Raises: trio.TooSlowError, trio.BrokenResourceError."""
    with trio.fail_after(WRITE_TIMEOUT):
        await stream.send_all(b"".join(map(encode, frames)))
