"""The port's host on libp2p's protocols. The swarm is ours: stock dialling, listening and stream handling are not used.

Every background task lives in the nursery of `open_host`. Nothing polls, dials or identifies of its own accord, unless
relays are on: see `relay`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from multiaddr.utils import get_network_addrs

from ....protocols.errors import PeerUnreachable
from ...background import open_background
from ..addresses import Address, expand, parse
from ..host import DIAL_DEADLINE, Connection, Gate, Handler, PathKind, PeerEvent, PeerId, Stream
from .dialer import Dialer, Source
from .handshake import NoiseIdentity
from .identify import Introductions, serve_identify
from .listener import Listeners
from .relay import Relaying, open_relaying
from .selftest import check_libp2p
from .serving import Served
from .settings import HostSettings
from .swarm import Swarm
from .upgrade import Upgrader
from .yamux.session import SessionOver


class LibP2pHost:
    """See `Host`. Made by `open_host`."""

    def __init__(
        self, identity: NoiseIdentity, gate: Gate, listeners: Listeners, settings: HostSettings, nursery: trio.Nursery
    ) -> None:
        self.gate = gate
        self._identity = identity
        self._listeners = listeners
        self.swarm = Swarm(Upgrader(identity, lambda: self.gate, settings), lambda: self.gate, settings, nursery)
        self.dialer = Dialer(self.swarm, self.source_for)
        self.introductions = Introductions(self.swarm)
        self.swarm.adopted.append(self.introductions.consider)
        self.relaying: Relaying | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        relayed = self.relaying.addresses if self.relaying else []
        return [str(replace(address, peer_id=self.peer_id)) for address in [*self.direct_addresses, *relayed]]

    @property
    def direct_addresses(self) -> list[Address]:
        """Where we listen, on each interface."""
        interfaces = [*get_network_addrs(4), *get_network_addrs(6)]
        return [each for address in self._listeners.addresses for each in expand(address, interfaces)]

    @property
    def connections(self) -> Sequence[Connection]:
        return [live.info for live in self.swarm.peers]

    @property
    def events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        return self.swarm.peers.events

    @property
    def public_key(self) -> bytes:
        """As libp2p's messages carry it."""
        return self._identity.keys.public_key.serialize()

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
        return await self.dialer.connect(peer_id, addresses, deadline)

    async def disconnect(self, peer_id: PeerId) -> None:
        await self.swarm.close(self.swarm.peers.of(peer_id))

    async def open_stream(self, peer_id: PeerId, protocol: str, *, deadline: float = DIAL_DEADLINE) -> Stream:
        return await self.swarm.open_stream(self.swarm.connected(peer_id), protocol, deadline)

    async def ping(self, peer_id: PeerId, *, deadline: float = DIAL_DEADLINE) -> float:
        live = self.swarm.connected(peer_id)
        with trio.move_on_after(deadline):
            try:
                return await live.muxer.ping()
            except SessionOver:
                sentence = f"the connection with {peer_id} ended: {live.muxer.reason}"
                raise PeerUnreachable(sentence, peer=peer_id) from None
        raise PeerUnreachable(f"{peer_id} did not answer within {deadline:g} s", peer=peer_id)

    def address_of(self, stream: Stream) -> Address | None:
        """Where the far end of a stream is, as we see it; None when its connection is over."""
        live = self.swarm.carrier(stream)
        return replace(parse(live.info.address), peer_id=None) if live else None

    def source_for(self, target: Address) -> Source | None:
        """The port that we listen on, if a connection to `target` can start there.

        A router between us then opens that port to the outside, which others can use: see `relay.punch`.
        """
        if target.kind not in ("ip4", "ip6") or target.loopback:
            return None
        for address in self._listeners.addresses:
            if address.kind == target.kind and not address.loopback:
                return address.host, address.port
        return None


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
            host = LibP2pHost(NoiseIdentity.from_seed(seed), gate, listeners, settings, nursery)
            serve_identify(host)
            if settings.relay:
                host.relaying = open_relaying(host)
            nursery.start_soon(listeners.run, host.swarm.arrived)
            try:
                yield host
            finally:
                listeners.close()
                with trio.CancelScope(shield=True):
                    await host.swarm.aclose()
        host.swarm.peers.close()
    finally:
        listeners.close()
