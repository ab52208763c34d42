"""The port's host on libp2p's protocols. The swarm is ours: stock dialling, listening and stream handling are not used.

Every background task lives in the nursery of `open_host`. Nothing polls, dials or identifies of its own accord, unless
relays are on: see `relay`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

import trio

from ....protocols.errors import PeerUnreachable
from ...background import open_background
from ..addresses import Address, parse
from ..expected_sockets import ExpectedSocket
from ..host import DIAL_DEADLINE, Connection, Gate, Handler, PathKind, PeerEvent, PeerId, Stream
from .dialer import Dialer
from .handshake import NoiseIdentity
from .identify import Introductions, serve_identify
from .listener import Listeners
from .relay import Relaying
from .selftest import check_libp2p
from .serving import Served
from .settings import HostSettings
from .swarm import Swarm
from .upgrade import Upgrader
from .yamux.session import SessionOver


class LibP2pHost:
    """The facade of the parts; see `Host`. Made by `open_host`. `relaying` is None when relays are off."""

    def __init__(
        self,
        swarm: Swarm,
        dialer: Dialer,
        listeners: Listeners,
        introductions: Introductions,
        relaying: Relaying | None,
    ) -> None:
        self.swarm, self._dialer, self._listeners = swarm, dialer, listeners
        self.introductions, self.relaying = introductions, relaying

    @property
    def peer_id(self) -> PeerId:
        return self.swarm.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return [str(address) for address in own_addresses(self.peer_id, self._listeners, self.relaying)]

    @property
    def connections(self) -> Sequence[Connection]:
        return [live.info for live in self.swarm.peers]

    @property
    def events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        return self.swarm.peers.events.receive

    @property
    def protocols(self) -> list[str]:
        """What members may open."""
        return self.swarm.serving.protocols

    @property
    def half_open(self) -> int:
        """Connections taken in whose far side has not proved who it is."""
        return self._listeners.half_open

    def path(self, peer_id: PeerId) -> PathKind | None:
        return self.swarm.peers.path(peer_id)

    def serve(self, protocol: str, handler: Handler, *, guests: bool = False) -> None:
        self.swarm.serving.add(protocol, Served(handler, guests))

    async def connect(
        self, peer_id: PeerId, addresses: Sequence[str], *, deadline: float = DIAL_DEADLINE
    ) -> Connection:
        relayed = self.relaying.reservations.dial if self.relaying else None
        return await self._dialer.connect(peer_id, addresses, deadline, relayed)

    async def disconnect(self, peer_id: PeerId) -> None:
        await self.swarm.close(self.swarm.peers.of(peer_id))

    async def open_stream(self, peer_id: PeerId, protocol: str, *, deadline: float = DIAL_DEADLINE) -> Stream:
        return await self.swarm.open_stream(self.swarm.connected(peer_id), protocol, deadline)

    @contextmanager
    def expect_socket(self, peer_id: PeerId, ticket: str) -> Iterator[ExpectedSocket]:
        live = self.swarm.connected(peer_id)
        port = self._listeners.port_for(parse(live.info.address)) if live.info.path is PathKind.DIRECT else 0
        with self.swarm.upgrader.expected.expect(ticket, port) as expected:
            yield expected

    async def dial_socket(
        self, peer_id: PeerId, ticket: str, port: int, *, deadline: float = DIAL_DEADLINE
    ) -> socket.socket:
        return await self._dialer.dial_socket(self.swarm.connected(peer_id).info, ticket, port, deadline)

    async def ping(self, peer_id: PeerId, *, deadline: float = DIAL_DEADLINE) -> float:
        live = self.swarm.connected(peer_id)
        with trio.move_on_after(deadline):
            try:
                return await live.muxer.ping()
            except SessionOver:
                sentence = f"the connection with {peer_id} ended: {live.muxer.reason}"
                raise PeerUnreachable(sentence, peer=peer_id) from None
        raise PeerUnreachable(f"{peer_id} did not answer within {deadline:g} s", peer=peer_id)


def own_addresses(peer_id: PeerId, listeners: Listeners, relaying: Relaying | None) -> list[Address]:
    """Return where a host can be dialled: directly, and through its relays."""
    relayed = relaying.reservations.addresses if relaying else []
    return [replace(address, peer_id=peer_id) for address in [*listeners.direct_addresses, *relayed]]


@asynccontextmanager
async def open_host(
    seed: bytes, listen: Sequence[str], gate: Gate, settings: HostSettings
) -> AsyncIterator[LibP2pHost]:
    """Raises: ValueError for an address that is none, CannotListen, LibP2pChanged."""
    await check_libp2p()
    listeners = Listeners(settings)
    await listeners.bind([parse(text) for text in listen])
    try:
        async with open_background() as nursery:
            identity = NoiseIdentity.from_seed(seed)
            swarm = Swarm(Upgrader(identity, gate, settings), settings, nursery)
            dialer = Dialer(swarm, listeners.source_for)
            introductions = Introductions(swarm)
            relaying = Relaying(swarm, dialer, listeners, introductions) if settings.relay else None
            public_key = identity.keys.public_key.serialize()
            serve_identify(swarm, public_key, partial(own_addresses, swarm.peer_id, listeners, relaying))
            host = LibP2pHost(swarm, dialer, listeners, introductions, relaying)
            nursery.start_soon(listeners.run, swarm.arrived)
            try:
                yield host
            finally:
                listeners.close()
                with trio.CancelScope(shield=True):
                    await swarm.aclose()
        swarm.peers.events.close()
    finally:
        listeners.close()
