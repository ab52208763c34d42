"""The mesh as the node's own users see and steer it: the `PeerService`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec
import trio

from ...protocols import mesh
from ...protocols.access import Caller, Limits
from ...protocols.errors import PeerNotFound, PeerUnreachable, TooLarge
from ...protocols.membership.statements import Certificate
from ...protocols.peer import (
    MAX_MESSAGE,
    InviteRequest,
    Message,
    MessageReply,
    P2pState,
    PeerInfo,
    Ping,
    RevocationEffect,
    Ticket,
)
from ...protocols.ticket import MAX_ADDRESSES, encode_ticket
from . import addresses
from .context import MeshContext
from .gossip import deliver
from .host import PathKind, PeerId
from .mesh_services import MeshServices

SERVICES = ["vm", "discovery"]


class MeshControl(Protocol):
    """What the node's own users control of its mesh."""

    @property
    def context(self) -> MeshContext: ...

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def running(self) -> MeshServices | None: ...

    def require_running(self) -> MeshServices: ...

    def resolve(self, ref: str) -> PeerId: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def revoke(self, peer: PeerId, leave_out: Sequence[PeerId] = ()) -> None: ...

    async def leave(self) -> None: ...

    async def join(self, text: str) -> Certificate: ...


class LocalPeers:
    """Bound to one caller; the dispatcher has checked its role."""

    def __init__(self, owner: MeshControl, caller: Caller) -> None:
        self._mesh, self._context, self._caller = owner, owner.context, caller

    async def p2p_info(self) -> PeerInfo:
        running, membership = self._mesh.running, self._context.membership
        known = list(running.host.addresses) if running else []
        own = membership.valid_certificate(self._mesh.peer_id)
        address, port = _first(known)
        info = PeerInfo(
            id=self._mesh.peer_id,
            name=self._context.name,
            address=address,
            port=port,
            status="online" if running else "stopped",
            services=SERVICES if running else [],
            uptime=running.uptime if running else None,
            role=own.role if own else None,
            addresses=known,
        )
        return self._explained(info)

    def _explained(self, info: PeerInfo) -> PeerInfo:
        said = self._context.membership.explain(info.id)
        by = self._context.title(said.path[-2]) if len(said.path) > 1 else None
        return msgspec.structs.replace(info, membership=said.status, admitted_by=by, reason=said.why, cure=said.cure)

    async def p2p_status(self) -> P2pState:
        info = await self.p2p_info()
        status = "started" if self._mesh.running else "stopped"
        return P2pState(status=status, id=info.id, address=info.address, port=info.port)

    async def list_peers(self) -> list[PeerInfo]:
        return sorted(
            (self._info(peer) for peer in self._context.membership.peers), key=lambda info: (info.name, info.id)
        )

    async def get_peer(self, peer: str) -> PeerInfo:
        peer_id = self._mesh.resolve(peer)
        return msgspec.structs.replace(await self._show(peer_id), budgets=list(self._context.meter.use(peer_id)))

    async def ping_peer(self, peer: str) -> Ping:
        running = self._mesh.require_running()
        peer_id = self._mesh.resolve(peer)
        if peer_id == self._mesh.peer_id:
            return Ping(id=peer_id, rtt=0.0, path=str(PathKind.DIRECT))
        await running.sessions.session_to(peer_id)
        seconds = await running.host.ping(peer_id)
        path = running.host.path(peer_id)
        if path is None:
            raise PeerUnreachable(f"the connection with {peer_id} is lost", peer=peer_id)
        return Ping(id=peer_id, rtt=round(seconds * 1000, 3), path=str(path))

    async def revoke_peer(self, peer: str, leave_out: Sequence[str] = ()) -> PeerInfo:
        peer_id = self._mesh.resolve(peer)
        left_out = [self._mesh.resolve(ref) for ref in leave_out]
        info = await self._show(peer_id)
        await self._mesh.revoke(peer_id, left_out)
        gone = msgspec.structs.replace(info, status="offline", role=None, services=[], path=None)
        return self._explained(gone)

    async def preview_revocation(self, peer: str) -> list[RevocationEffect]:
        return self._context.membership.consequences(self._mesh.resolve(peer))

    async def leave_fleet(self) -> PeerInfo:
        await self._mesh.leave()
        return await self.p2p_info()

    async def start_p2p(self) -> P2pState:
        await self._mesh.start()
        return await self.p2p_status()

    async def stop_p2p(self) -> P2pState:
        await self._mesh.stop()
        return await self.p2p_status()

    async def send_message(self, message: Message) -> MessageReply:
        running = self._mesh.require_running()
        if max(len(encode(message.data)) for encode in (msgspec.json.encode, msgspec.msgpack.encode)) > MAX_MESSAGE:
            raise TooLarge(f"a message has at most {MAX_MESSAGE} bytes of data", limit=MAX_MESSAGE)
        peer_id = self._mesh.resolve(message.peer_id)
        sent = mesh.Message(message_type=message.message_type, data=message.data)
        if peer_id == self._mesh.peer_id:
            await trio.lowlevel.checkpoint()
            return deliver(self._context, peer_id, sent)
        return await running.gossip.send_message(peer_id, sent)

    async def invite_peer(self, invite: InviteRequest) -> Ticket:
        running = self._mesh.require_running()
        own = self._context.membership.require_issuer()
        limits = (invite.limits or Limits()).lowered(own.limits)
        reachable = addresses.for_others(running.host.addresses)[:MAX_ADDRESSES]
        asked = msgspec.structs.replace(invite, limits=limits)
        ticket = await self._context.tickets.make(asked, reachable, self._caller)
        expires = datetime.fromtimestamp(ticket.expires, UTC)
        return Ticket(
            ticket=encode_ticket(ticket),
            expires=expires,
            role=invite.role,
            addresses=reachable,
            warnings=_ticket_warnings(reachable),
        )

    async def join_fleet(self, ticket: str) -> PeerInfo:
        inviter = await self._mesh.join(ticket)
        return self._info(inviter)

    async def _show(self, peer_id: PeerId) -> PeerInfo:
        if peer_id == self._mesh.peer_id:
            return await self.p2p_info()
        certificate = self._context.membership.known(peer_id)
        if certificate is None:
            raise PeerNotFound(f"no peer of this fleet is called '{peer_id}'", peer=peer_id)
        return self._info(certificate)

    def _info(self, certificate: Certificate) -> PeerInfo:
        peer, running = certificate.sub, self._mesh.running
        online = running is not None and running.sessions.online(peer)
        known = self._context.address_book.addresses(peer)
        seen = self._context.now() if online else self._context.address_book.last_seen(peer)
        valid = self._context.membership.valid_certificate(peer)
        address, port = _first(known)
        info = PeerInfo(
            id=peer,
            name=certificate.name,
            address=address,
            port=port,
            status="online" if online else "offline",
            services=SERVICES if online else [],
            last_seen=datetime.fromtimestamp(seen, UTC) if seen is not None else None,
            role=valid.role if valid else None,
            path=str(running.host.path(peer) or "") or None if running else None,
            addresses=known,
        )
        return self._explained(info)


def _first(known: list[str]) -> tuple[str, int]:
    """Host and port of the first address, one that others can use if there is one."""
    for text in addresses.for_others(known):
        try:
            parsed = addresses.parse(text)
        except ValueError:
            return text, 0
        return parsed.host, parsed.port
    return "", 0


def _ticket_warnings(reachable: Sequence[str]) -> list[str]:
    """Say who cannot use a ticket with these addresses, and what to do."""
    scope = addresses.widest_scope(reachable)
    if scope is None:
        return ["this node listens nowhere, so that nobody can use the ticket; see 'listen' in [p2p]"]
    cure = "connect this machine to a network, or listen on one of its addresses ('listen' in [p2p], or --listen)"
    if scope is addresses.Scope.MACHINE:
        return [f"the ticket works on this machine alone: all its addresses are of the loopback; {cure}"]
    if scope is addresses.Scope.LINK:
        return [f"the ticket works on this network segment alone: all its addresses are link-local; {cure}"]
    return []
