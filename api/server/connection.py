"""One accepted connection: Hypercorn's HTTP/1.1 with a deadline on every wait and an orderly end.

Hypercorn's own shell never closes a connection after a cancelled send, lets a slow reader hold its task for ever, hangs
when an answer comes before the whole body, and resets a client that is still sending when it is refused.
Here a write is whole or the end of the connection, an idle client is dropped, and the end first lets the client
read its answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from ..rest.connection_info import ConnectionInfo
from .framing import StrictH11

log = structlog.get_logger(__name__)

READ_SIZE = 1 << 16
# A part of this size must be taken by the client within WRITE_TIME seconds.
WRITE_SIZE = 1 << 17
WRITE_TIME = 20.0
# Up to here a write is tried at once; a view that sends more in one go lets others have a turn.
SMALL_WRITE = 1 << 14
# After the last answer the client may still be sending: this much is read and thrown away.
DISCARD_BYTES = 4 << 20
DISCARD_TIME = 2.0
# SO_LINGER with no time: closing throws away what is unsent.
_ABORT = struct.pack("ii", 1, 0)
# Messages that wait for a view which does not read.
QUEUE = 8

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True, slots=True)
class Serving:
    """What all connections of a server share."""

    app: Any
    config: Config
    context: WorkerContext
    idle_timeout: float


class Connection:
    """Serve requests on `stream` until either side has had enough."""

    def __init__(self, serving: Serving, stream: Stream, info: ConnectionInfo) -> None:
        self._serving = serving
        self._stream = stream
        self._info = info
        self._writing = trio.Lock()
        self._reading = trio.CancelScope()
        self._idle_since = trio.current_time()
        self._ending = False
        self._protocol: StrictH11

    async def run(self) -> None:
        """Return when nothing is left to do; who accepted the stream closes it."""
        try:
            async with trio.open_nursery() as views:
                await self._serve(views)
        except* Exception:
            # Whatever a stranger's bytes do to the parser or a view, it ends this connection and nothing else.
            log.exception("a connection failed by a bug", address=self._info.address)

    async def _serve(self, views: trio.Nursery) -> None:
        serving = self._serving
        self._protocol = StrictH11(
            serving.app, serving.config, serving.context, _Views(views), ConnectionState({"connection": self._info}),
            self._info.secure, (self._info.address, 0), (self._info.served, 0), self._send, has_left=self._has_left,
        )  # fmt: skip
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self._read()
        await self._protocol.handle(Closed())
        # The client is gone, or has its answer: what still runs has no reader.
        views.cancel_scope.cancel()

    def stop(self, *, now: bool = False) -> None:
        """The server ends: an idle or endless connection is cut, a busy one is answered first, unless it is `now`."""
        if self._protocol.idle or ((now or self._info.endless) and not self._info.interrupt()):
            self._reading.cancel()

    async def _read(self) -> None:
        """Hand over what arrives until the client is gone, idle for too long, or done with."""
        while not self._ending:
            with trio.CancelScope(deadline=self._idle_deadline()) as self._reading:
                data = await self._stream.receive_some(READ_SIZE)
            if self._reading.cancelled_caught:
                break
            if not data:
                return
            self._info.heard_at = trio.current_time()
            await self._protocol.handle(RawData(bytes(data)))
        if self._ending:
            await self._discard_rest()

    def _idle_deadline(self) -> float:
        """Until when bytes are waited for. A request under way has deadlines of its own."""
        return self._idle_since + self._serving.idle_timeout if self._protocol.idle else float("inf")

    async def _discard_rest(self) -> None:
        """Closing while bytes are unread resets the connection, and the client loses the answer that it has."""
        left = DISCARD_BYTES
        with trio.move_on_after(DISCARD_TIME):
            if isinstance(self._stream, trio.SocketStream):
                async with self._writing:
                    await self._stream.send_eof()
            while left > 0 and (data := await self._stream.receive_some(READ_SIZE)):
                left -= len(data)

    async def _send(self, event: Event) -> None:
        """What the protocol wants done."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            if event.idle:
                self._idle_since = trio.current_time()
                self._reading.deadline = self._idle_deadline()
        elif isinstance(event, Closed):
            # The answer is out and none will follow: `_read` sees the rest out.
            self._ending = True
            self._reading.cancel()

    async def _write(self, data: bytes) -> None:
        """Send all of it, whoever is cancelled meanwhile; a client that does not take it in time is cut off."""
        try:
            # A free lock is taken without a turn of the loop, which an event to each of many listeners would pay for.
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            with trio.CancelScope(shield=True):
                await self._writing.acquire()
        try:
            if len(data) <= SMALL_WRITE and isinstance(self._stream, trio.SocketStream):
                data = data[_write_some(self._stream.socket, data) :]
            for start in range(0, len(data), WRITE_SIZE):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_TIME) as timeout:
                    await self._stream.send_all(data[start : start + WRITE_SIZE])
                if timeout.cancelled_caught:
                    return await self._abort()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self._abort()
        finally:
            self._writing.release()

    async def _abort(self) -> None:
        """Close at once: what a client does not read must not stay in the kernel's memory either."""
        with contextlib.suppress(OSError):
            self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        await trio.aclose_forcefully(self._stream)

    def _has_left(self) -> bool:
        """Whether the client has closed its end, also while bytes of it are unread."""
        poll = select.poll()
        poll.register(self._socket().socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _socket(self) -> trio.SocketStream:
        return self._stream if isinstance(self._stream, trio.SocketStream) else self._stream.transport_stream


def _write_some(sock: trio.socket.SocketType, data: bytes) -> int:
    """Write what the kernel takes at once, without the turn of the loop that trio's `send` takes after each write.

    An event to a hundred listeners would pay for a hundred of them. Raises: OSError.
    """
    try:
        return os.write(sock.fileno(), data)
    except BlockingIOError:
        return 0


class _Views:
    """Hypercorn's task group: runs the application for each request, and takes messages for it without ever hanging."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def spawn_app(self, app: Any, _config: Config, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        to_view, messages = trio.open_memory_channel[Any](QUEUE)

        async def receive() -> Any:
            try:
                return await messages.receive()
            except trio.EndOfChannel:
                return {"type": f"{scope['type']}.disconnect"}

        async def run() -> None:
            with messages:
                try:
                    await app(scope, receive, send)
                finally:
                    with trio.CancelScope(shield=True):
                        await send(None)

        async def put(message: Any) -> None:
            if message["type"] in {"http.disconnect", "websocket.disconnect"}:
                # Never waits: the view itself may be who ends the stream.
                to_view.close()
                return
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await to_view.send(message)

        self._nursery.start_soon(run)
        return put

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._nursery.start_soon(function, *args)
