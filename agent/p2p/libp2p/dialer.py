"""Dialling: all addresses of a peer race, each a little after the one before; the first proven connection wins.

Relayed addresses start last: a direct path is worth some waiting.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from ....protocols.errors import PeerUnreachable
from ..addresses import Address, parse, parse_all
from ..expected_sockets import BULK
from ..host import Connection, Direction, PathKind, PeerId
from .handshake import NotAdmitted, UpgradeFailed
from .listener import Source
from .multistream import NegotiationFailed, NotSpoken, select
from .peers import Live
from .pipe import PipeBroken, SocketPipe
from .swarm import Swarm
from .upgrade import Upgraded

Attempt: TypeAlias = Callable[[Address, PeerId], Awaitable[Upgraded]]
"""Dials one address. Raises: UpgradeFailed. What it returns belongs to the race."""

_RELAY_DELAY: Final = 0.5
_TAKEN: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})


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
        direct = [address for address in addresses if address.relay is None]
        async with trio.open_nursery() as nursery:
            lost = await self._start(direct, nursery)
            with trio.move_on_after(_RELAY_DELAY):
                for each in lost:
                    await each.wait()
            await self._start([address for address in addresses if address.relay], nursery)

    def tried(self, addresses: Sequence[Address]) -> dict[str, str]:
        """What became of each address."""
        return {str(address): self.failures.get(str(address), "no answer") for address in addresses}

    async def _start(self, addresses: Sequence[Address], nursery: trio.Nursery) -> list[trio.Event]:
        """One after the other; returns what tells of each one's failure."""
        events = []
        for address in addresses:
            lost = trio.Event()
            events.append(lost)
            nursery.start_soon(self._try, address, lost, nursery.cancel_scope)
            with trio.move_on_after(self.stagger):
                await lost.wait()
        return events

    async def _try(self, address: Address, lost: trio.Event, race: trio.CancelScope) -> None:
        try:
            upgraded = await self.attempt(address, self.peer_id)
        except UpgradeFailed as error:
            self.failures[str(address)] = str(error)
            self.refused = self.refused or isinstance(error, NotAdmitted)
            lost.set()
            return
        if self.winner is None:
            self.winner = (address, upgraded)
            race.cancel()
        else:
            upgraded.muxer.give_up()


class Dialer:
    """Dial peers, at most once at a time each. `source_for` returns the port of ours to dial an address from."""

    def __init__(self, swarm: Swarm, source_for: Callable[[Address], Source | None]) -> None:
        self._swarm = swarm
        self._source_for = source_for
        self._racing: dict[PeerId, trio.Event] = {}

    async def connect(
        self, peer_id: PeerId, addresses: Sequence[str], deadline: float, relayed: Attempt | None = None
    ) -> Connection:
        """Dial all addresses; `relayed` dials those through relays. Raises: PeerUnreachable."""
        settings = self._swarm.settings
        targets = [
            address
            for address in parse_all(addresses, most=settings.dial_addresses)
            if address.port and address.peer_id in (None, peer_id)
        ]
        race = Race(peer_id, partial(self._dial, relayed), settings.dial_stagger)
        with trio.move_on_after(deadline):
            while (racing := self._racing.get(peer_id)) is not None:
                await racing.wait()
            if (live := self._swarm.peers.best(peer_id)) is not None:
                return live.info
            return await self._race(race, targets)
        tried = race.tried(targets)
        sentence = f"{peer_id} did not answer within {deadline:g} s at {', '.join(tried) or 'any address'}"
        raise PeerUnreachable(sentence, peer=peer_id, tried=tried)

    async def dial_socket(self, connection: Connection, ticket: str, port: int, deadline: float) -> socket.socket:
        """Open the socket that a peer expects: where we have dialled it, or at its `port`.

        Raises: PeerUnreachable.
        """
        peer_id = connection.peer_id
        if connection.path is not PathKind.DIRECT:
            raise PeerUnreachable(f"{peer_id} is reached through a relay", peer=peer_id)
        address = parse(connection.address)
        if connection.direction is Direction.INBOUND:
            address = replace(address, port=port)
        reason = f"no answer within {deadline:g} s"
        with trio.move_on_after(deadline):
            try:
                return await _open_expected(address, BULK + ticket, self._swarm.settings.write_timeout)
            except (UpgradeFailed, PipeBroken, NegotiationFailed, NotSpoken) as error:
                reason = str(error)
        raise PeerUnreachable(f"{peer_id} takes no second connection: {reason}", peer=peer_id)

    def _dialled_meanwhile(self, peer_id: PeerId) -> Live | None:
        """Return the connection that the peer has made while we dialled it, if that is the one to keep.

        Where both ends have two, the higher peer ID gives its own up; the lower one only for one that is in use.
        """
        live = self._swarm.peers.dialled_by(peer_id)
        kept = live is not None and (not self._swarm.peers.decides(peer_id) or bool(live.muxer.stream_count))
        return live if kept else None

    async def _dial(self, relayed: Attempt | None, address: Address, peer_id: PeerId) -> Upgraded:
        """One address. Raises: UpgradeFailed."""
        if address.relay is None:
            pipe = await dial_tcp(address, self._swarm.settings.write_timeout, self._source_for(address))
            return await self._swarm.upgrader.upgrade(pipe, Direction.OUTBOUND, peer_id)
        if relayed is None:
            raise UpgradeFailed("relays are off")
        return await relayed(address, peer_id)

    async def _race(self, race: Race, targets: Sequence[Address]) -> Connection:
        """Raises: PeerUnreachable when every address fails."""
        done = self._racing[race.peer_id] = trio.Event()
        try:
            await race.run(targets)
            if race.winner is None:
                tried = race.tried(targets)
                reasons = "; ".join(f"{address}: {reason}" for address, reason in tried.items())
                sentence = f"cannot reach {race.peer_id}: {reasons or 'no address is known'}"
                raise PeerUnreachable(sentence, tried=tried, refused=race.refused)
            address, upgraded = race.winner
            if address.relay is None and (live := self._dialled_meanwhile(race.peer_id)) is not None:
                upgraded.muxer.give_up()
                return live.info
            return self._swarm.adopt(upgraded, address, Direction.OUTBOUND).info
        except BaseException:
            if race.winner is not None:
                race.winner[1].muxer.give_up()
            raise
        finally:
            del self._racing[race.peer_id]
            done.set()


async def _open_expected(address: Address, protocol: str, write_timeout: float) -> socket.socket:
    """Raises: UpgradeFailed, PipeBroken, NegotiationFailed, NotSpoken."""
    pipe = await dial_tcp(address, write_timeout)
    try:
        if await select(pipe.receive, pipe.send, protocol):
            raise NegotiationFailed("the peer spoke first")
        return pipe.detach()
    except BaseException:
        pipe.close()
        raise


async def dial_tcp(address: Address, write_timeout: float, source: Source | None = None) -> SocketPipe:
    """A connected socket, from `source` if that is free. Raises: UpgradeFailed."""
    try:
        family, where = await _resolve(address)
        try:
            return SocketPipe(await _connect(family, where, source), write_timeout)
        except OSError as error:
            if source is None or error.errno not in _TAKEN:
                raise
        return SocketPipe(await _connect(family, where, None), write_timeout)
    except OSError as error:
        raise UpgradeFailed(error.strerror or str(error)) from error


async def _connect(family: int, where: tuple[Any, ...], source: Source | None) -> trio.socket.SocketType:
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
    return sock


async def _resolve(address: Address) -> tuple[int, tuple[Any, ...]]:
    families = {"ip4": socket.AF_INET, "dns4": socket.AF_INET, "ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
    family = families.get(address.kind, socket.AF_UNSPEC)
    found = await trio.socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)
    return found[0][0], found[0][4]
