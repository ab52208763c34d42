"""The peer-to-peer services while they are on: a host, a line to every member, and the door for those with a ticket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from ...protocols.access import Caller
from ...protocols.errors import P2pStopped
from ...protocols.mesh import MAX_ADDRESSES, MeshService, News, Whereabouts
from ...protocols.messages import Hello, Request
from ..background import open_background
from . import joining, line
from .calls import PeerCalls
from .finders import Finder
from .fleet import FleetInventory
from .gossip import Gossip
from .host import Admission, Direction, Host, Path, PeerId, Stream
from .joining import Door
from .line import Line
from .links import Links
from .parts import Parts, Serve, no_member
from .rpc import PeerServer

log = structlog.get_logger(__name__)
HOUSEKEEPING = 60.0
COMPARISON = 300.0
RENEWAL = 3600.0


class Running:
    """Made by `open_running`."""

    def __init__(
        self, parts: Parts, host: Host, fleet: FleetInventory, finders: Sequence[Finder], nursery: trio.Nursery
    ) -> None:
        self._parts, self.host, self._fleet, self._nursery = parts, host, fleet, nursery
        self._finders = finders
        self._born = trio.current_time()
        self._declared: tuple[list[str], int] = ([], 0)
        self._told = self.whereabouts()
        self.links = Links(host, parts, self.hello, self._use, nursery)
        self.links.seek = self._seek
        self.calls = PeerCalls(self.links.line_to, parts.title)
        self.gossip = Gossip(parts, self.links, self.whereabouts, self.members_changed, nursery)
        self._server = PeerServer(
            parts.dispatcher.extended({MeshService: self.gossip.bind}),
            self,
            parts.events,
            parts.line_silence,
            parts.witness,
        )
        host.serve(line.PROTOCOL, self._server.serve)
        for protocol, serve in parts.served.items():
            host.serve(protocol, partial(self._to_member, serve))
        host.serve(joining.PROTOCOL, Door(parts, self.gossip, self.members_changed).serve, guests=True)

    @property
    def uptime(self) -> int:
        """Seconds since the services were switched on."""
        return int(trio.current_time() - self._born)

    # -- what we say of ourselves

    def whereabouts(self) -> Whereabouts:
        addresses = list(self.host.addresses)[:MAX_ADDRESSES]
        if addresses != self._declared[0]:
            self._declared = (addresses, max(int(self._parts.now() * 1000), self._declared[1] + 1))
        return Whereabouts(peer=self.host.peer_id, addresses=addresses, number=self._declared[1])

    def hello(self) -> Hello:
        where = self.whereabouts()
        return Hello(name=self._parts.name, agent=self._parts.agent, addresses=where.addresses, number=where.number)

    # -- what the server asks

    def caller(self, peer_id: PeerId, request: Request) -> Caller:
        certificate = self._parts.membership.standing(peer_id)
        if certificate is None:
            raise no_member(peer_id)
        caller = Caller(
            principal=peer_id, role=certificate.role, limits=certificate.limits, idempotency_key=request.key,
            detach=request.detach, from_peer=True,
        )  # fmt: skip
        return caller.acting_for(request.principal, request.role)

    async def _to_member(self, serve: Serve, stream: Stream) -> None:
        certificate = self._parts.membership.standing(stream.peer_id)
        if certificate is None:
            stream.reset()
            return
        role, limits = certificate.role, certificate.limits
        await serve(Caller(principal=stream.peer_id, role=role, limits=limits, from_peer=True), stream)

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        self._nursery.start_soon(self._heard, peer_id, hello)
        self.links.poke(peer_id)

    # -- members come and go

    def members_changed(self) -> None:
        """Take up with new members, and drop whoever is none any more, at once."""
        membership = self._parts.membership
        self.links.want(peer.sub for peer in membership.peers if membership.standing(peer.sub))
        for peer in {connection.peer_id for connection in self.host.connections}:
            if self._parts.gate(peer, Direction.INBOUND) is Admission.REFUSED:
                self._nursery.start_soon(self._dismiss, peer)

    async def _dismiss(self, peer: PeerId) -> None:
        for each in self.links.lines:
            if each.peer_id == peer:
                each.end(no_member(peer))
        await self.host.disconnect(peer)

    async def _heard(self, peer: PeerId, hello: Hello) -> None:
        """A member has said where it is."""
        if hello.addresses:
            where = Whereabouts(peer=peer, addresses=hello.addresses[:MAX_ADDRESSES], number=hello.number)
            await self.gossip.take(News(whereabouts=[where]), peer)

    async def _use(self, line: Line) -> None:
        """A member is online, until its line ends."""
        peer = line.peer_id
        await self._heard(peer, line.greeting)
        known = self._parts.membership.known(peer)
        told = {"id": peer, "name": known.name if known else line.greeting.name}
        self._parts.publish("peer.online", told)
        try:
            async with open_background() as nursery:
                nursery.start_soon(self.gossip.tell_everything, line)
                nursery.start_soon(self.gossip.renew_with, peer)
                nursery.start_soon(self._fleet.follow, line, self.calls)
                await line.over.wait()
        finally:
            self._parts.publish("peer.offline", told)

    # -- tasks

    async def run(self) -> None:
        self.members_changed()
        self._nursery.start_soon(self._watch_connections)
        self._nursery.start_soon(self._keep_house)
        self._nursery.start_soon(self._compare)
        self._nursery.start_soon(self._renew)
        for finder in self._finders:
            self._nursery.start_soon(finder.run, self._hint)

    def _hint(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Somebody says that a peer is there. Worth a try if it is a member and was not known to be."""
        if self._parts.membership.known(peer) and self._parts.directory.hint(peer, addresses):
            self.links.poke(peer)

    async def _seek(self, peer: PeerId) -> None:
        """A peer is not where it was: ask whoever may know."""
        for finder in self._finders:
            self._hint(peer, await finder.seek(peer))

    async def _watch_connections(self) -> None:
        """Whoever connects to us is there: dial no longer in the dark."""
        async for event in self.host.events:
            if event.peer_id == self.host.peer_id:
                self._say_where()
            elif event.connected:
                self.links.poke(event.peer_id)
            if event.path is Path.DIRECT:
                self.links.change_over(event.peer_id)

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING)
            for each in self.links.lines:
                self._parts.directory.seen(each.peer_id)
            await self._parts.directory.save_seen()
            self.members_changed()
            self._say_where()

    def _say_where(self) -> None:
        """Tell the others where we are, if that has changed."""
        if (where := self.whereabouts()) != self._told:
            self._told = where
            self.gossip.spread(News(whereabouts=[where]))

    async def _compare(self) -> None:
        while True:
            await trio.sleep(COMPARISON * self._parts.rng.uniform(0.5, 1.5))
            await self.gossip.compare()

    async def _renew(self) -> None:
        membership = self._parts.membership
        while True:
            await trio.sleep(RENEWAL * self._parts.rng.uniform(0.5, 1.0))
            if membership.fleet == membership.peer_id:
                if renewed := await membership.refound():
                    self.gossip.spread(News(members=[renewed]))
                continue
            for each in self.links.lines:
                await self.gossip.renew_with(each.peer_id)


@asynccontextmanager
async def open_running(parts: Parts, fleet: FleetInventory) -> AsyncIterator[Running]:
    """The services, on. Raises: what the host raises when it cannot listen."""
    async with (
        parts.open_host(parts.gate) as host,
        parts.open_finders(host) as finders,
        open_background() as nursery,
    ):
        running = Running(parts, host, fleet, finders, nursery)
        await running.run()
        yield running


def stopped() -> P2pStopped:
    return P2pStopped("P2P services are not running")
