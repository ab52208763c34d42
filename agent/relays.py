"""Listening ports of this node that are relayed to guests: forwarded ports, and VNC sockets.

A relay listens, dials its target for each connection, and copies bytes both ways, half-closes included.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from ..protocols.errors import PortTaken, TwinshareError
from .streams import carry

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 256
"""Of one relay at once."""
DIAL_TIMEOUT = 20.0
"""Seconds for dialling the target."""

Dial = Callable[[], Awaitable[trio.abc.HalfCloseableStream]]
Admits = Callable[[trio.SocketStream], Awaitable[bool]]


@dataclass(slots=True)
class _Relay:
    port: int
    scope: trio.CancelScope


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
        slots = trio.CapacityLimiter(MAX_CONNECTIONS)

        async def handle(near: trio.SocketStream) -> None:
            async with near:
                if slots.available_tokens < 1 or (admits is not None and not await admits(near)):
                    return
                async with slots:
                    await _connect(near, dial)

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


async def _connect(near: trio.SocketStream, dial: Dial) -> None:
    """Relay one connection. Its errors end here: a relay outlives its connections."""
    try:
        with trio.fail_after(DIAL_TIMEOUT):
            far = await dial()
    except (OSError, TwinshareError, trio.TooSlowError) as error:
        log.debug("a relay's target does not answer", error=str(error))
        return
    async with far:
        await carry(near, far)


@asynccontextmanager
async def open_relays() -> AsyncIterator[Relays]:
    """Yield the relays of a node; they end with the block."""
    async with trio.open_nursery() as nursery:
        yield Relays(nursery)
        nursery.cancel_scope.cancel()
