"""Listening ports of this node that are relayed to guests: forwarded ports, and VNC sockets.

A relay listens, dials its target for each connection, and copies bytes both ways, half-closes included. A connection is
half-open while its target is dialled and once one of its directions has ended; such a one gives its place to a new one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog
import trio

from ..protocols.errors import PortTaken, TwinshareError
from .streams import carry

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256
"""Of one relay at once."""
DIAL_TIMEOUT = 20.0
"""Seconds for dialling the target."""
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds of silence before probes, seconds between them, and their number: a client that vanished is noticed."""

Dial = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]
Admits = Callable[[trio.SocketStream], Awaitable[bool]]


@dataclass(slots=True)
class _Relay:
    port: int
    scope: trio.CancelScope


@dataclass(slots=True, eq=False)
class _Connection:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    half_open_since: float | None = field(default_factory=trio.current_time)  # it begins with dialling

    def mark_open(self) -> None:
        self.half_open_since = None

    def mark_half_closed(self) -> None:
        if self.half_open_since is None:
            self.half_open_since = trio.current_time()


class _Places:
    """The connections of one relay, `MAX_CONNECTIONS` at most."""

    def __init__(self) -> None:
        self._taken: set[_Connection] = set()

    def _longest_half_open(self) -> _Connection | None:
        half_open = [(one.half_open_since, one) for one in self._taken if one.half_open_since is not None]
        return min(half_open, key=lambda pair: pair[0])[1] if half_open else None

    def any_left(self) -> bool:
        """Whether a new connection gets a place, be it that of a half-open one."""
        return len(self._taken) < MAX_CONNECTIONS or self._longest_half_open() is not None

    @contextmanager
    def taken(self) -> Iterator[_Connection]:
        """Hold a place for the block, which is cancelled when it gives way; `any_left` was true just before."""
        if len(self._taken) >= MAX_CONNECTIONS and (longest := self._longest_half_open()) is not None:
            self._taken.remove(longest)
            longest.scope.cancel()
        connection = _Connection()
        self._taken.add(connection)
        try:
            with connection.scope:
                yield connection
        finally:
            self._taken.discard(connection)


class Relays:
    """Made by `open_relays`. Each relay has a key; opening a key again returns the port that is open."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._open: dict[tuple[str, ...], _Relay] = {}
        self._opening = trio.Lock()

    def port(self, key: tuple[str, ...]) -> int | None:
        """Return the port that is open under `key`, None where none is."""
        relay = self._open.get(key)
        return relay.port if relay else None

    async def open(self, key: tuple[str, ...], bind: str, port: int, dial: Dial, admits: Admits | None = None) -> int:
        """Listen on `bind`:`port` (0: any free port) until `close`, and return the port. Raises: PortTaken."""
        async with self._opening:
            if relay := self._open.get(key):
                return relay.port
            listeners = await listen(bind, port)
            relay = _Relay(listeners[0].socket.getsockname()[1], trio.CancelScope())
            self._open[key] = relay
            self._nursery.start_soon(self._serve, relay, listeners, dial, admits, name=f"relay {key}")
            return relay.port

    def close(self, key: tuple[str, ...]) -> None:
        """Stop listening and end the connections; no error if nothing is open."""
        if relay := self._open.pop(key, None):
            relay.scope.cancel()

    def keys(self, first: str) -> list[tuple[str, ...]]:
        """Return the keys of open relays that begin with `first`."""
        return [key for key in self._open if key[0] == first]

    async def _serve(
        self, relay: _Relay, listeners: list[trio.SocketListener], dial: Dial, admits: Admits | None
    ) -> None:
        places = _Places()

        async def handle(near: trio.SocketStream) -> None:
            async with near:
                if not places.any_left() or (admits is not None and not await admits(near)):
                    return
                if places.any_left():  # others came while `admits` was asked
                    _keep_alive(near)
                    with places.taken() as connection:
                        await _connect(near, dial, connection)

        with relay.scope:
            await trio.serve_listeners(handle, listeners)


async def listen(bind: str, port: int) -> list[trio.SocketListener]:
    """Raises: PortTaken."""
    try:
        return await trio.open_tcp_listeners(port, host=bind)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program" if taken else f"cannot be opened: {error.strerror or error}"
        raise PortTaken(f"port {port} on {bind} {why}; choose another host_port", port=port, bind=bind) from None


def _keep_alive(near: trio.SocketStream) -> None:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        near.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def _connect(near: trio.SocketStream, dial: Dial, connection: _Connection) -> None:
    """Relay one connection. Its errors end here: a relay outlives its connections."""
    try:
        with trio.fail_after(DIAL_TIMEOUT):
            far = await dial()
    except (OSError, TwinshareError, trio.TooSlowError) as error:
        log.debug("a relay's target does not answer", error=str(error))
        return
    connection.mark_open()
    async with far:
        await carry(near, far, on_half_closed=connection.mark_half_closed)


@asynccontextmanager
async def open_relays() -> AsyncIterator[Relays]:
    """Yield the relays of a node; they end with the block."""
    async with trio.open_nursery() as nursery:
        yield Relays(nursery)
        nursery.cancel_scope.cancel()
