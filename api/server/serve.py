"""`open_api`: a node's REST interface on its socket, for as long as the block lasts."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext

from ...agent.node import Node
from ...protocols.console import HEARTBEAT
from ...protocols.errors import Overloaded
from ..app import make_app
from ..rest.application import RestApp
from ..rest.connection_info import ConnectionInfo
from ..rest.errors import closing_response
from .connection import Connection, Serving, Stream
from .connection_limit import ConnectionLimit
from .far_end import identify
from .listen import Listening, listening
from .websocket import MAX_MESSAGE

log = structlog.get_logger(__name__)

# Seconds that requests under way have to finish when the node stops, and then to be answered that it stops.
GRACE = 3.0
ANSWER_TIME = 1.0
HANDSHAKE_TIME = 10.0
# Of all connections, one source may hold this part, and all strangers together that one.
SOURCE_SHARE = 0.75
STRANGERS_SHARE = 0.25


@asynccontextmanager
async def open_api(node: Node) -> AsyncIterator[str]:
    """Serve `node` at its `api.listen` until the block ends; gives the URL. Raises: CannotListen, ConfigError."""
    with listening(node.config.api) as at:
        async with _serving(node, at):
            yield at.url


@asynccontextmanager
async def _serving(node: Node, at: Listening) -> AsyncIterator[None]:
    server = _Server(make_app(node, at.url), node, at.tls)
    async with trio.open_nursery() as nursery:
        accepting = await nursery.start(server.listen, at.socket)
        log.info("REST is ready", url=at.url)
        try:
            yield
        finally:
            accepting.cancel()
            with trio.CancelScope(shield=True):
                await server.close()
            nursery.cancel_scope.cancel()


class _Server:
    """Accepts connections, within bounds, and sees them out."""

    def __init__(self, app: RestApp, node: Node, context: ssl.SSLContext | None) -> None:
        config = node.config.api
        self._guests = node.guest_pids
        self._tls = context
        self._tokenless = config.auth == "local"
        self._metrics = app.metrics
        hypercorn = HypercornConfig()
        hypercorn.include_server_header = False
        hypercorn.keep_alive_max_requests = 1_000_000
        hypercorn.websocket_max_message_size = MAX_MESSAGE
        hypercorn.websocket_ping_interval = HEARTBEAT
        self._serving = Serving(app, hypercorn, WorkerContext(None), config.idle_timeout)
        shares = (max(1, int(config.max_connections * share)) for share in (SOURCE_SHARE, STRANGERS_SHARE))
        self._limit = ConnectionLimit(config.max_connections, *shares)
        self._open: set[Connection] = set()
        self._changed = trio.Event()

    async def listen(
        self, listener: socket.socket, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Accept until the scope that is handed back is cancelled; connections go on after that."""
        # trio closes what it is given: the listening socket itself belongs to whoever took it.
        listener = listener.dup()
        listener.setblocking(False)
        accepting = trio.CancelScope()
        async with trio.open_nursery() as connections:
            with accepting:
                task_status.started(accepting)
                sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
                await trio.serve_listeners(self._welcome, sockets, handler_nursery=connections)

    async def _welcome(self, stream: trio.SocketStream) -> None:
        """One connection from its first moment to its last; `serve_listeners` closes it then, whatever happens."""
        try:
            info = await identify(stream.socket, self._guests, tokenless=self._tokenless, secure=self._tls is not None)
        except OSError:
            return  # it is gone already
        if not self._limit.take(info):
            await _turn_away(stream, secure=info.secure)
            return
        self._metrics.connections += 1
        try:
            await self._hold(stream, info)
        finally:
            self._metrics.connections -= 1
            self._limit.give(info)

    async def _hold(self, stream: trio.SocketStream, info: ConnectionInfo) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        secured: Stream = stream
        if self._tls is not None:
            secured = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
            if not await _handshake(secured):
                return
        connection = Connection(self._serving, secured, info)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
            self._changed.set()

    async def close(self) -> None:
        """See the open connections out: the idle ones at once, the others after their answer, none after the grace."""
        await self._serving.context.terminated.set()
        for seconds, now in ((GRACE, False), (ANSWER_TIME, True)):
            for connection in list(self._open):
                connection.stop(now=now)
            with trio.move_on_after(seconds):
                while self._open:
                    self._changed = trio.Event()
                    await self._changed.wait()


async def _handshake(stream: trio.SSLStream[trio.SocketStream]) -> bool:
    with trio.move_on_after(HANDSHAKE_TIME), contextlib.suppress(trio.BrokenResourceError):
        await stream.do_handshake()
        return True
    await trio.aclose_forcefully(stream)
    return False


async def _turn_away(stream: trio.SocketStream, *, secure: bool) -> None:
    """One connection too many: say so, if that can be said without a handshake, and close."""
    headers, body = closing_response(Overloaded("too many connections are open; try again later", retry_after=1))
    head = b"".join(b"%s: %s\r\n" % header for header in headers)
    with trio.move_on_after(1), contextlib.suppress(OSError, trio.BrokenResourceError):
        if not secure:
            await stream.send_all(b"HTTP/1.1 503 Service Unavailable\r\n%s\r\n" % head + body)
            await stream.send_eof()
            await stream.receive_some(1 << 16)
    await trio.aclose_forcefully(stream)
