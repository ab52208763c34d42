"""The peer-to-peer services while they are on: a host, a session to every member, gossip, and the join server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from ...protocols.access import Caller
from ...protocols.errors import InsufficientResources, P2pStopped
from ...protocols.events import PeerOffline, PeerOnline
from ...protocols.mesh import GossipUpdate, MeshService, PeerRecord
from ...protocols.messages import Hello, Request
from ..background import open_background
from ..limits import Budget
from . import joining, peer_session
from .calls import PeerCalls
from .context import MeshContext, Serve, Served, no_member
from .discovery import Discovery
from .fleet import FleetInventory
from .gossip import Gossip
from .host import Admission, Direction, Host, PathKind, PeerId, Stream
from .joining import JoinServer
from .peer_session import PeerSession
from .peer_sessions import PeerSessions
from .rpc import PeerServer

log = structlog.get_logger(__name__)
HOUSEKEEPING_INTERVAL = 60.0
COMPARE_INTERVAL = 300.0
RENEW_INTERVAL = 3600.0
DELIVER = MeshService.deliver.__name__


class MeshServices:
    """Made by `open_mesh_services`."""

    def __init__(
        self,
        context: MeshContext,
        served: Served,
        host: Host,
        fleet: FleetInventory,
        discovery: Sequence[Discovery],
        nursery: trio.Nursery,
    ) -> None:
        self._context, self.host, self._fleet, self._nursery = context, host, fleet, nursery
        self._discovery, self._protocols = discovery, served.protocols
        self._started_at = trio.current_time()
        self._published = context.own_record.current(host.addresses).number
        self.sessions = PeerSessions(host, context, discovery, self.hello, nursery)
        self.calls = PeerCalls(self.sessions.session_to, context.title)
        self.gossip = Gossip(context, self.sessions, self.own_record, self.members_changed, nursery)
        self._server = PeerServer(
            served.dispatcher.extended({MeshService: self.gossip.bind}),
            self,
            context.events,
            context.session_timeout,
            context.audit_sink,
            context.offload,
        )

    def serve(self) -> None:
        """Register the protocols of the mesh at the host."""
        self.host.serve(peer_session.PROTOCOL, self._server.serve)
        for protocol, serve in self._protocols.items():
            self.host.serve(protocol, partial(self._serve_member, serve))
        join_server = JoinServer(self._context, self.gossip, self.members_changed)
        self.host.serve(joining.PROTOCOL, join_server.serve, guests=True)

    @property
    def uptime(self) -> int:
        """Return the seconds since the services were switched on."""
        return int(trio.current_time() - self._started_at)

    # -- this node's record

    def own_record(self) -> PeerRecord:
        """Return this node's peer record, signed."""
        return self._context.own_record.signed(self.host.addresses)

    def hello(self) -> Hello:
        """Return the HELLO of this node."""
        record = self._context.own_record.current(self.host.addresses)
        name, agent = self._context.name, self._context.agent
        clock = int(self._context.now())
        return Hello(
            name=name,
            agent=agent,
            addresses=record.addresses,
            number=record.number,
            clock=clock,
            instance=self._context.instance,
        )

    # -- what the server asks

    def caller(self, peer_id: PeerId, method: str, request: Request) -> Caller:
        self._charge(peer_id, method, memoryview(request.arguments).nbytes)
        certificate = self._context.membership.valid_certificate(peer_id)
        if certificate is None:
            raise no_member(peer_id)
        caller = Caller(
            principal=peer_id, role=certificate.role, limits=certificate.limits, idempotency_key=request.key,
            detach=request.detach, from_peer=True,
        )  # fmt: skip
        return caller.acting_for(request.principal, request.role)

    def _charge(self, peer_id: PeerId, method: str, size: int) -> None:
        """Raises: RateLimited."""
        meter = self._context.meter
        meter.charge(peer_id, Budget.CALLS)
        meter.charge(peer_id, Budget.CALL_BYTES, size)
        if method == DELIVER:
            meter.charge(peer_id, Budget.MESSAGES)
            meter.charge(peer_id, Budget.MESSAGE_BYTES, size)

    async def _serve_member(self, serve: Serve, stream: Stream) -> None:
        certificate = self._context.membership.valid_certificate(stream.peer_id)
        if certificate is None:
            stream.reset()
            return
        self._context.meter.charge(stream.peer_id, Budget.CALLS)
        role, limits = certificate.role, certificate.limits
        await serve(Caller(principal=stream.peer_id, role=role, limits=limits, from_peer=True), stream)

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        self._nursery.start_soon(self._take_hello, peer_id, hello)
        self.sessions.retry_now(peer_id)

    # -- members come and go

    def members_changed(self) -> None:
        """Connect to new members, and disconnect those whose membership ended, at once."""
        membership = self._context.membership
        members = (peer.sub for peer in membership.peers if membership.valid_certificate(peer.sub))
        self.sessions.keep(members, self._use)
        for peer in {connection.peer_id for connection in self.host.connections}:
            if self._context.gate(peer, Direction.INBOUND) is Admission.REFUSED:
                self._nursery.start_soon(self._disconnect, peer)

    async def _disconnect(self, peer: PeerId) -> None:
        for session in self.sessions.live:
            if session.peer_id == peer:
                session.end(no_member(peer))
        await self.host.disconnect(peer)

    async def _take_hello(self, peer: PeerId, hello: Hello) -> None:
        """Take the peer record and the clock that a member's HELLO carries."""
        self._context.instances.observe(peer, hello.instance, trio.current_time())
        if hello.clock:
            self._context.peer_clocks[peer] = hello.clock - trio.current_time()
        if hello.addresses:
            await self.gossip.take_hello(PeerRecord(peer=peer, addresses=hello.addresses, number=hello.number))

    async def _use(self, session: PeerSession) -> None:
        """Publish that a member is online, and exchange with it, until its session ends."""
        peer = session.peer_id
        await self._take_hello(peer, session.greeting)
        known = self._context.membership.known(peer)
        name = known.name if known else session.greeting.name
        self._context.publish(PeerOnline(id=peer, name=name), peer)
        try:
            async with open_background() as nursery:
                nursery.start_soon(self.gossip.send_everything, session)
                nursery.start_soon(self.gossip.renew_with, peer)
                nursery.start_soon(self._fleet.follow, session, self.calls)
                await session.over.wait()
        finally:
            self._context.peer_clocks.pop(peer, None)
            self._context.publish(PeerOffline(id=peer, name=name), peer)

    # -- tasks

    def start(self) -> None:
        """Start the background tasks."""
        self.members_changed()
        self._nursery.start_soon(self._save_record)
        for task in (self._watch_connections, self._keep_house, self._compare, self._renew):
            self._nursery.start_soon(task)
        for source in self._discovery:
            self._nursery.start_soon(source.run, self.sessions.hint)

    async def _watch_connections(self) -> None:
        """Dial at once a peer that has connected to us, and move sessions from relays to direct connections."""
        async for event in self.host.events:
            if event.peer_id == self.host.peer_id:
                self._publish_record()
            elif event.connected:
                self.sessions.retry_now(event.peer_id)
            if event.path is PathKind.DIRECT:
                self.sessions.replace_relayed(event.peer_id)

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_INTERVAL)
            for session in self.sessions.live:
                self._context.address_book.seen(session.peer_id)
            await self._context.address_book.save_seen()
            await self._context.vm_lists.save()
            self.members_changed()
            self._publish_record()

    def _publish_record(self) -> None:
        """Send our peer record to the others, if it has changed."""
        record = self._context.own_record.current(self.host.addresses)
        if record.number != self._published:
            self._published = record.number
            self._nursery.start_soon(self._save_record)
            self.gossip.spread(GossipUpdate(records=[self.own_record()]))

    async def _save_record(self) -> None:
        try:
            await self._context.own_record.save()
        except InsufficientResources as error:
            log.warning("the number of this node's peer record was not stored", reason=error.message)

    async def _compare(self) -> None:
        while True:
            await trio.sleep(COMPARE_INTERVAL * self._context.rng.uniform(0.5, 1.5))
            await self.gossip.compare()

    async def _renew(self) -> None:
        membership = self._context.membership
        while True:
            await trio.sleep(RENEW_INTERVAL * self._context.rng.uniform(0.5, 1.0))
            if mended := await membership.mend_dates():
                self.gossip.spread(mended)
            if membership.fleet == membership.peer_id:
                if renewed := await membership.refound():
                    self.gossip.spread(GossipUpdate(members=[renewed]))
                continue
            for session in self.sessions.live:
                await self.gossip.renew_with(session.peer_id)


@asynccontextmanager
async def open_mesh_services(
    context: MeshContext, served: Served, fleet: FleetInventory
) -> AsyncIterator[MeshServices]:
    """Switch the services on. Raises: what the host raises when it cannot listen."""
    async with (
        context.open_host(context.gate) as host,
        context.open_discovery(host, lambda: context.own_record.signed(host.addresses)) as discovery,
        open_background() as nursery,
    ):
        services = MeshServices(context, served, host, fleet, discovery, nursery)
        services.serve()
        services.start()
        yield services


def stopped() -> P2pStopped:
    """Return the error of a call while the services are off."""
    return P2pStopped("P2P services are not running")
