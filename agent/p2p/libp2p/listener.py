"""Sockets that take connections in, and the bound on those that have not proved who they are."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final, TypeAlias

import structlog
import trio
from multiaddr.utils import get_network_addrs

from ...sockets import network_of
from ..addresses import Address, expand
from .half_open import HalfOpen
from .pipe import SocketPipe
from .settings import HostSettings

log = structlog.get_logger(__name__)

_BACKLOG: Final = 1024
_NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Arrived: TypeAlias = Callable[[SocketPipe, Address], Awaitable[None]]
"""Makes a connection of a pipe, or closes it; it returns when the far side is proven or gone, and raises nothing."""


Source: TypeAlias = tuple[str, int]
"""An address and port of ours to dial from."""


class CannotListen(OSError):
    """An address cannot be listened on; the message names it and says why."""


class Listeners:
    """All listening sockets of a host. `addresses` are the bound ones: port 0 became a port."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._sockets: list[tuple[Address, trio.socket.SocketType]] = []
        self._half_open: HalfOpen[trio.CancelScope] = HalfOpen(
            most=settings.half_open, most_each=settings.half_open_each
        )

    @property
    def addresses(self) -> list[Address]:
        return [address for address, _ in self._sockets]

    @property
    def direct_addresses(self) -> list[Address]:
        """Return the addresses that we listen on, one for each interface, those that most others can use first."""
        interfaces = [*get_network_addrs(4), *get_network_addrs(6)]
        return sorted(expand(self.addresses, interfaces), key=lambda address: address.scope)

    def source_for(self, target: Address) -> Source | None:
        """Return the listening port if a connection to `target` can start there.

        A router on the way then opens that port to the outside, which others can use: see `relay.punch`.
        """
        if target.kind not in ("ip4", "ip6") or target.loopback:
            return None
        for address in self.addresses:
            if address.kind == target.kind and not address.loopback:
                return address.host, address.port
        return None

    def port_for(self, far: Address) -> int:
        """Return the port at which a peer at that address can reach us; 0 when there is none."""
        kinds = {far.kind} if far.kind in ("ip4", "ip6") else {"ip4", "ip6"}
        return next((address.port for address in self.addresses if address.kind in kinds), 0)

    @property
    def half_open(self) -> int:
        return len(self._half_open)

    async def bind(self, addresses: Sequence[Address]) -> None:
        """Listen on addresses; of those for all interfaces, one of a kind that this machine lacks is left out.

        Raises: CannotListen; nothing is left open then.
        """
        lacking: CannotListen | None = None
        try:
            for address in addresses:
                try:
                    self._sockets.append(await _listen(address))
                except CannotListen as error:
                    if not address.unspecified or error.errno not in _NO_SUCH_FAMILY:
                        raise
                    log.info("this machine lacks a kind of address", address=str(address), reason=str(error))
                    lacking = error
            if lacking and not self._sockets:
                raise lacking
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for _, sock in self._sockets:
            sock.close()

    async def run(self, arrived: Arrived) -> None:
        """Take connections until it is cancelled."""
        async with trio.open_nursery() as nursery:
            for address, sock in self._sockets:
                nursery.start_soon(self._accept, address, sock, arrived, nursery)

    async def _accept(
        self, address: Address, sock: trio.socket.SocketType, arrived: Arrived, nursery: trio.Nursery
    ) -> None:
        while True:
            try:
                connection, far = await sock.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    log.warning("cannot take connections", reason=error.strerror)
                    await trio.sleep(0.1)
                continue
            nursery.start_soon(self.take, connection, replace(address, host=far[0], port=far[1]), arrived)

    async def take(self, connection: trio.socket.SocketType, far: Address, arrived: Arrived) -> None:
        try:
            pipe = SocketPipe(connection, self._settings.write_timeout)
        except OSError:  # gone before we looked
            return
        with trio.CancelScope() as scope:
            if (loser := self._half_open.add(network_of(far.host), scope)) is not None:
                loser.cancel()
            try:
                await arrived(pipe, far)
            finally:
                self._half_open.remove(network_of(far.host), scope)


async def _listen(address: Address) -> tuple[Address, trio.socket.SocketType]:
    """Raises: CannotListen."""
    try:
        with ExitStack() as on_failure:
            sock = on_failure.enter_context(make_socket(address))
            await sock.bind((address.host, address.port))
            sock.listen(_BACKLOG)
            # Hole punching dials from the port that we listen on, which both sockets must allow. Allowing it before the
            # bind would let a second agent share the port and take half of our connections.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            on_failure.pop_all()
    except OSError as error:
        hint = "another program uses the port" if error.errno == errno.EADDRINUSE else error.strerror
        raise CannotListen(error.errno, f"cannot listen on {address}: {hint}; choose another with --listen") from error
    return replace(address, port=sock.getsockname()[1]), sock


def make_socket(address: Address) -> trio.socket.SocketType:
    """Raises: OSError."""
    family = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock
