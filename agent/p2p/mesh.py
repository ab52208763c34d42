"""The mesh of one node: members, their sessions, and calls to any of them. Everything of the room is joined here."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import trio

from ...protocols.access import Caller, Witness, unwitnessed
from ...protocols.errors import AmbiguousName, Conflict, Forbidden, InvalidRequest, PeerNotFound
from ...protocols.membership import Certificate
from ...protocols.mesh import GossipUpdate
from ...protocols.services import PeerService
from ...protocols.table import Dispatcher, Method
from ...protocols.ticket import decode_ticket
from ...protocols.vm import Vm
from ..background import open_background
from . import joining
from .address_book import open_address_book
from .context import MeshContext, OpenHost, Publish, Serve
from .discovery import OpenDiscovery, no_discovery
from .fleet import FleetInventory
from .host import PeerId
from .local_peers import LocalPeers
from .membership import Override, open_membership
from .mesh_services import MeshServices, open_mesh_services, stopped
from .rpc import EventSource
from .signing import Signer
from .store import KeyValueStore
from .tickets import open_tickets

WARN_BEFORE = 10 * 86400
"""Seconds before the end of this node's certificate when its health speaks of it."""
JOIN_SETTLE_TIME = 1.0
"""Seconds that a node which has joined waits until it is connected with everybody."""


class Mesh:
    """Made by `open_mesh`."""

    def __init__(self, context: MeshContext, nursery: trio.Nursery) -> None:
        self.context = context
        self.peer_id = context.membership.peer_id
        self.fleet = FleetInventory(context)
        self.dispatcher = context.dispatcher.extended({PeerService: self.service})
        self._nursery = nursery
        self._running: MeshServices | None = None
        self._leave = trio.Event()
        self._left = trio.Event()
        self._switch = trio.Lock()

    # -- on and off

    @property
    def running(self) -> MeshServices | None:
        """The services, None while they are off."""
        return self._running

    def require_running(self) -> MeshServices:
        """Raises: P2pStopped."""
        if self._running is None:
            raise stopped()
        return self._running

    async def start(self) -> None:
        """Switch the services on. Raises: what the host raises when it cannot listen."""
        async with self._switch:
            if self._running is None:
                self._leave, self._left = trio.Event(), trio.Event()
                await self._nursery.start(self._run)

    async def stop(self) -> None:
        """Switch them off; the identity and the fleet stay."""
        async with self._switch:
            if self._running is not None:
                self._leave.set()
                await self._left.wait()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with open_mesh_services(self.context, self.dispatcher, self.fleet) as self._running:
                task_status.started()
                await self._leave.wait()
                self._running = None
        finally:
            self._running = None
            self._left.set()

    # -- peers

    def service(self, caller: Caller) -> LocalPeers:
        """The `PeerService` for the node's own users."""
        return LocalPeers(self, caller)

    def resolve(self, ref: str) -> PeerId:
        """The peer that a user means: an ID, a name, or the only one whose ID begins so; `local` is this node.

        Raises: PeerNotFound, AmbiguousName listing those that could be meant.
        """
        if ref == "local":
            return self.peer_id
        names = {peer.sub: peer.name for peer in self.context.membership.peers}
        names[self.peer_id] = self.context.name
        if ref in names:
            return ref
        meant = [peer for peer, name in names.items() if name == ref]
        meant = meant or [peer for peer in names if peer.startswith(ref)]
        if not meant:
            raise PeerNotFound(f"no peer of this fleet is called '{ref}'", peer=ref)
        if len(meant) > 1:
            listed = ", ".join(f"{names[peer]} ({peer})" for peer in sorted(meant))
            raise AmbiguousName(f"'{ref}' may be any of {listed}", peers=sorted(meant))
        return meant[0]

    async def call(self, peer: str, method: Method, arguments: Mapping[str, Any], caller: Caller) -> Any:
        """Any operation of a peer, as if it were here; the peer may be this node.

        Raises: what the operation raises; Detached; Forbidden, P2pStopped, PeerNotFound, AmbiguousName,
        PeerUnreachable, PeerMisbehaved, DeadlineExceeded.
        """
        running = self.require_running()
        peer_id = self.resolve(peer)
        if peer_id == self.peer_id:
            return await self.dispatcher.call(caller, method, arguments)
        if method.local:
            raise Forbidden(f"{method.name} is for a node's own users; call it on {peer} itself")
        caller.require(method.role, method.name)
        return await running.calls.call(peer_id, method, arguments, caller)

    @property
    def problems(self) -> list[str]:
        """What is wrong with this node's place in its fleet."""
        membership = self.context.membership
        own = membership.valid_certificate(self.peer_id)
        if own is not None and own.exp - self.context.now() > WARN_BEFORE:
            return []
        if own is not None:
            end = datetime.fromtimestamp(own.exp, UTC).date().isoformat()
            founder = self.context.title(membership.fleet)
            cure = f"let {founder}, which founded the fleet, or another admin come online"
            return [f"this node's certificate ends on {end} and no admin has renewed it: {cure}"]
        said = f"this node's certificate of the fleet {membership.fleet} was revoked or has expired"
        return [f"{said}: no peer talks to it; join again with a new ticket"]

    async def fleet_vms(self, caller: Caller) -> list[Vm]:
        """The VMs of all peers, in at most two seconds; without P2P services, this node's and what others last said."""
        running = self._running
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
        context.publish("fleet.joined", {"fleet": fleet, "by": inviter.name})
        return inviter

    async def revoke(self, peer: PeerId) -> None:
        """Put a peer out of the fleet, at once here and within moments everywhere. Raises: PeerNotFound, Forbidden."""
        update: GossipUpdate = await self.context.membership.revoke(peer)
        if running := self._running:
            await running.gossip.spread_and_wait(update, joining.SPREAD_TIMEOUT)
            running.members_changed()


@asynccontextmanager
async def open_mesh(
    *,
    open_host: OpenHost,
    open_discovery: OpenDiscovery = no_discovery,
    signer: Signer,
    name: str,
    agent: str,
    dispatcher: Dispatcher,
    store: KeyValueStore,
    events: EventSource,
    publish: Publish,
    now: Callable[[], float],
    overrides: Mapping[PeerId, Override] | None = None,
    bootstrap: Sequence[str] = (),
    peer_timeout: float = 15.0,
    served: Mapping[str, Serve] | None = None,
    witness: Witness = unwitnessed,
    rng: random.Random | None = None,
    start: bool = True,
) -> AsyncIterator[Mesh]:
    """The mesh of the node whose key `signer` has. `peer_timeout`: seconds after which a silent peer is gone.

    `dispatcher` has the operations that peers may call, `witness` writes down those that change something, `served`
    are further protocols for members; `now` is the time of day in seconds of the epoch.
    Raises: what the host raises when it cannot listen.
    """
    context = MeshContext(
        open_host=open_host,
        open_discovery=open_discovery,
        name=name,
        agent=agent,
        dispatcher=dispatcher,
        events=events,
        publish=publish,
        now=now,
        peer_timeout=peer_timeout,
        served=served or {},
        witness=witness,
        rng=rng or random.Random(),  # noqa: S311 - it spreads retries in time
        membership=await open_membership(store, signer, name, overrides or {}, now),
        address_book=await open_address_book(store, bootstrap, now),
        tickets=await open_tickets(store, signer.peer_id, now),
    )
    async with open_background() as nursery:
        mesh = Mesh(context, nursery)
        if start:
            await mesh.start()
        yield mesh
        await mesh.stop()
