"""Dialling: all addresses of a peer race, each a little after the one before; the first proven connection wins."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import trio

from ..addresses import Address
from ..host import PeerId
from .handshake import NotAdmitted, UpgradeFailed
from .pipe import SocketPipe
from .upgrade import Upgraded

Attempt: TypeAlias = Callable[[Address, PeerId], Awaitable[Upgraded]]
"""Dials one address. Raises: UpgradeFailed. What it returns belongs to the race."""


@dataclass(slots=True)
class Race:
    """One peer, many addresses. `failures` says why each address lost; `refused`: the peer hung up on us."""

    peer_id: PeerId
    attempt: Attempt
    stagger: float
    winner: tuple[Address, Upgraded] | None = None
    failures: dict[str, str] = field(default_factory=dict)
    refused: bool = False

    async def run(self, addresses: Sequence[Address]) -> None:
        """Ends with the first winner, or when all have failed."""
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(self._try, address, failed, nursery.cancel_scope)
                with trio.move_on_after(self.stagger):
                    await failed.wait()

    async def _try(self, address: Address, failed: trio.Event, race: trio.CancelScope) -> None:
        try:
            upgraded = await self.attempt(address, self.peer_id)
        except UpgradeFailed as error:
            self.failures[str(address)] = str(error)
            self.refused = self.refused or isinstance(error, NotAdmitted)
            failed.set()
            return
        if self.winner is None:
            self.winner = (address, upgraded)
            race.cancel()
        else:
            upgraded.muxer.give_up()


async def dial_tcp(address: Address, patience: float, source: tuple[str, int] | None = None) -> SocketPipe:
    """A connected socket; `source` is the address and port to dial from. Raises: UpgradeFailed."""
    try:
        family, where = await _resolve(address)
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            if source is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                await sock.bind(source)
            await sock.connect(where)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise UpgradeFailed(error.strerror or str(error)) from error
    return SocketPipe(sock, patience)


async def _resolve(address: Address) -> tuple[int, tuple[Any, ...]]:
    families = {"ip4": socket.AF_INET, "dns4": socket.AF_INET, "ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
    family = families.get(address.kind, socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)
    return found[0][0], found[0][4]
