"""The mesh of one node: members, their sessions, and calls to any of them. Everything of the room is joined here."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from ...protocols.access import AuditSink, Caller, no_audit
from ...protocols.errors import Conflict, Forbidden, InvalidRequest, PeerNotFound
from ...protocols.events import FleetJoined, FleetLeft
from ...protocols.membership.statements import Certificate
from ...protocols.mesh import GossipUpdate
from ...protocols.method import Method
from ...protocols.peer import FleetVms
from ...protocols.peer_service import PeerService
from ...protocols.ticket import decode_ticket
from ..background import open_background
from ..limits import Meter
from . import joining
from .address_book import open_address_book
from .context import MeshContext, OpenHost, Publish, Served
from .discovery import OpenDiscovery, no_discovery
from .fleet import FleetInventory
from .host import PeerId
from .local_peers import LocalPeers
from .membership import open_membership
from .membership_view import Override
from .mesh_client import MeshClient
from .mesh_services import MeshServices, open_mesh_services
from .offload import Offload, Threads
from .problems import mesh_problems
from .records import open_own_record
from .rpc import EventSource
from .signing import Signer
from .store import KeyValueStore
from .tickets import open_tickets
from .verification import Verifier
from .vm_lists import open_vm_lists

REVOKE_TIMEOUT = 0.5
"""Seconds that a revocation waits for the others to have it, before the peer is disconnected."""
JOIN_SETTLE_TIME = 1.0
"""Seconds that a node which has joined waits until it is connected with everybody."""


class Mesh:
    """Made by `open_mesh`."""

    def __init__(self, client: MeshClient, served: Served, nursery: trio.Nursery) -> None:
        self.client, self.context, self.peer_id = client, client.context, client.peer_id
        self.dispatcher = served.dispatcher.extended({PeerService: self.service})
        self.fleet = FleetInventory(client.context, self.dispatcher)
        self._served = Served(self.dispatcher, served.protocols)
        self._nursery = nursery
        self._leave = trio.Event()
        self._left = trio.Event()
        self._switch = trio.Lock()

    # -- on and off

    @property
    def running(self) -> MeshServices | None:
        """The services, None while they are off."""
        return self.client.running

    def require_running(self) -> MeshServices:
        """Raises: P2pStopped."""
        return self.client.require_running()

    async def start(self) -> None:
        """Switch the services on. Raises: what the host raises when it cannot listen."""
        async with self._switch:
            if self.running is None:
                self._leave, self._left = trio.Event(), trio.Event()
                await self._nursery.start(self._run)

    async def stop(self) -> None:
        """Switch them off; the identity and the fleet stay."""
        async with self._switch:
            if self.running is not None:
                self._leave.set()
                await self._left.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with open_mesh_services(self.context, self._served, self.fleet) as services:
                self.client.switched(services)
                task_status.started()
                await self._leave.wait()
                self.client.switched(None)
        finally:
            self.client.switched(None)
            self._left.set()

    # -- peers

    def service(self, caller: Caller) -> LocalPeers:
        """The `PeerService` for the node's own users."""
        return LocalPeers(self, caller)

    def resolve(self, ref: str) -> PeerId:
        """As `MeshClient.resolve`."""
        return self.client.resolve(ref)

    async def call(self, peer: str, method: Method, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """Call any operation of a peer, as if it were here; the peer may be this node. Raises: as `MeshClient.call`."""
        self.require_running()
        if self.resolve(peer) == self.peer_id:
            return await self.dispatcher.call(caller, method, arguments)
        return await self.client.call(peer, method, arguments, caller)

    @property
    def problems(self) -> list[str]:
        """What is wrong with this node's place in its fleet."""
        return mesh_problems(self.context)

    async def fleet_vms(self, caller: Caller) -> FleetVms:
        """The VMs of all peers, in at most two seconds; of those who cannot be asked, what they answered last."""
        running = self.running
        online = [session.peer_id for session in running.sessions.live] if running else []
        return await self.fleet.vms(caller, online, running.calls if running else None)

    # -- members

    async def join(self, text: str) -> Certificate:
        """Join the fleet that a ticket comes from; tells who let us in.

        Raises: InvalidRequest, Conflict, Forbidden, P2pStopped, PeerNotFound, PeerUnreachable, PeerMisbehaved.
        """
        context, running = self.context, self.require_running()
        ticket = decode_ticket(text)
        if ticket.inviter == self.peer_id:
            raise InvalidRequest("this node has made the ticket itself; use it on another node", path="ticket")
        if ticket.expires <= context.now():
            raise Forbidden("the ticket has expired; ask for a new one")
        if not context.membership.alone:
            raise Conflict(f"this node is already in a fleet with others ({context.membership.fleet})")
        with context.joining(ticket.inviter):
            fleet, chain, pieces = await joining.join(running.host, ticket, context.name, context.agent)
            await context.membership.adopt(fleet, chain, ticket.inviter)
        await context.address_book.forget_all()
        for update in pieces:
            await running.gossip.take(update, ticket.inviter)
        running.members_changed()
        await running.sessions.wait_until_tried(JOIN_SETTLE_TIME)
        inviter = context.membership.known(ticket.inviter)
        if inviter is None:
            raise PeerNotFound(f"{ticket.inviter} did not tell its own certificate", peer=ticket.inviter)
        context.publish(FleetJoined(fleet=fleet, by=inviter.name))
        return inviter

    async def revoke(self, peer: PeerId, leave_out: Sequence[PeerId] = ()) -> None:
        """Put a peer out of the fleet, at once here and within moments everywhere.

        Whom it had admitted stays, but for `leave_out`. Raises: PeerNotFound, Forbidden, InvalidRequest, Conflict.
        """
        membership = self.context.membership
        update: GossipUpdate = await membership.revoke(peer, leave_out)
        await self.context.tickets.bar(membership.revoked_in(update))
        if running := self.running:
            # The peer itself hears it too, before it is disconnected.
            await running.gossip.spread_and_wait(update, REVOKE_TIMEOUT)
            running.members_changed()

    async def leave(self) -> None:
        """Leave the fleet; the node founds one of its own. Raises: Conflict for the founder."""
        membership = self.context.membership
        left = membership.fleet
        await membership.leave()
        await self.context.address_book.forget_all()
        if running := self.running:
            running.members_changed()
        self.context.publish(FleetLeft(fleet=left))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What a mesh is made of. `signer` has the node's key; a peer is gone after `peer_timeout` seconds of silence.

    `audit_sink` records the calls that change something; `now` is the time of day in seconds of the epoch.
    """

    open_host: OpenHost
    open_discovery: OpenDiscovery = no_discovery
    signer: Signer
    name: str
    agent: str
    store: KeyValueStore
    events: EventSource
    publish: Publish
    now: Callable[[], float]
    overrides: Mapping[PeerId, Override] = field(default_factory=dict)
    bootstrap: Sequence[str] = ()
    peer_timeout: float = 15.0
    audit_sink: AuditSink = no_audit
    rng: random.Random = field(default_factory=random.Random)
    offload: Offload = field(default_factory=Threads)


async def make_mesh_client(settings: MeshSettings) -> MeshClient:
    """The client of a mesh whose services are off: what is kept of the fleet is read."""
    store, signer, now, meter = settings.store, settings.signer, settings.now, Meter()
    verifier = Verifier(settings.offload, meter)
    return MeshClient(
        MeshContext(
            open_host=settings.open_host,
            open_discovery=settings.open_discovery,
            name=settings.name,
            agent=settings.agent,
            events=settings.events,
            publish=settings.publish,
            now=now,
            peer_timeout=settings.peer_timeout,
            audit_sink=settings.audit_sink,
            rng=settings.rng,
            membership=await open_membership(store, signer, settings.name, settings.overrides, now, verifier),
            address_book=await open_address_book(store, settings.bootstrap, now),
            tickets=await open_tickets(store, signer.peer_id, now),
            own_record=await open_own_record(signer, store, now),
            verifier=verifier,
            offload=settings.offload,
            vm_lists=await open_vm_lists(store, now),
            meter=meter,
        )
    )


@asynccontextmanager
async def open_mesh(client: MeshClient, served: Served) -> AsyncIterator[Mesh]:
    """The mesh that `client` calls, and what it serves itself. It is off until `start`, and switched off at the end."""
    async with open_background() as nursery:
        mesh = Mesh(client, served, nursery)
        yield mesh
        await mesh.stop()
        await client.context.vm_lists.save()
