"""The mesh as the node's own users see and steer it: the `PeerService`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import trio

from ...protocols.access import Caller, Limits
from ...protocols.errors import PeerNotFound, PeerUnreachable, TooLarge
from ...protocols.membership import Certificate
from ...protocols.mesh import Letter
from ...protocols.peer import InviteRequest, Message, MessageReply, P2pState, PeerInfo, Ping, Ticket
from ...protocols.ticket import encode_ticket
from . import addresses
from .gossip import deliver
from .host import Path, PeerId

if TYPE_CHECKING:
    from .mesh import Mesh

MAX_LETTER = 64 << 10
SERVICES = ["vm", "discovery"]


class LocalPeers:
    """Bound to one caller; the dispatcher has checked its role."""

    def __init__(self, mesh: Mesh, caller: Caller) -> None:
        self._mesh, self._parts, self._caller = mesh, mesh.parts, caller

    async def p2p_info(self) -> PeerInfo:
        running, membership = self._mesh.running, self._parts.membership
        known = list(running.host.addresses) if running else []
        own = membership.standing(self._mesh.peer_id)
        address, port = _first(known)
        return PeerInfo(
            id=self._mesh.peer_id,
            name=self._parts.name,
            address=address,
            port=port,
            status="online" if running else "stopped",
            services=SERVICES if running else [],
            uptime=running.uptime if running else None,
            role=own.role if own else None,
            addresses=known,
        )

    async def p2p_status(self) -> P2pState:
        info = await self.p2p_info()
        status = "started" if self._mesh.running else "stopped"
        return P2pState(status=status, id=info.id, address=info.address, port=info.port)

    async def list_peers(self) -> list[PeerInfo]:
        return sorted(
            (self._info(peer) for peer in self._parts.membership.peers), key=lambda info: (info.name, info.id)
        )

    async def get_peer(self, peer: str) -> PeerInfo:
        return await self._show(self._mesh.resolve(peer))

    async def ping_peer(self, peer: str) -> Ping:
        running = self._mesh.require_running()
        peer_id = self._mesh.resolve(peer)
        if peer_id == self._mesh.peer_id:
            return Ping(id=peer_id, rtt=0.0, path=str(Path.DIRECT))
        await running.links.line_to(peer_id)
        seconds = await running.host.ping(peer_id)
        path = running.host.path(peer_id)
        if path is None:
            raise PeerUnreachable(f"the connection with {peer_id} is lost", peer=peer_id)
        return Ping(id=peer_id, rtt=round(seconds * 1000, 3), path=str(path))

    async def revoke_peer(self, peer: str) -> PeerInfo:
        peer_id = self._mesh.resolve(peer)
        info = await self._show(peer_id)
        await self._mesh.revoke(peer_id)
        return msgspec.structs.replace(info, status="offline", role=None, services=[], path=None)

    async def start_p2p(self) -> P2pState:
        await self._mesh.start()
        return await self.p2p_status()

    async def stop_p2p(self) -> P2pState:
        await self._mesh.stop()
        return await self.p2p_status()

    async def send_message(self, message: Message) -> MessageReply:
        running = self._mesh.require_running()
        if len(msgspec.json.encode(message.data)) > MAX_LETTER:
            raise TooLarge(f"a message has at most {MAX_LETTER} bytes of data", limit=MAX_LETTER)
        peer_id = self._mesh.resolve(message.peer_id)
        letter = Letter(message_type=message.message_type, data=message.data)
        if peer_id == self._mesh.peer_id:
            await trio.lowlevel.checkpoint()
            return deliver(self._parts, peer_id, letter)
        return await running.gossip.send(peer_id, letter)

    async def invite_peer(self, invite: InviteRequest) -> Ticket:
        running = self._mesh.require_running()
        own = self._parts.membership.require_issuer()
        limits = (invite.limits or Limits()).lowered(own.limits)
        reachable = _outward(running.host.addresses)
        ticket = await self._parts.tickets.make(invite.role, limits, invite.expires, invite.uses, reachable)
        expires = datetime.fromtimestamp(ticket.expires, UTC)
        return Ticket(ticket=encode_ticket(ticket), expires=expires, role=invite.role)

    async def join_fleet(self, ticket: str) -> PeerInfo:
        inviter = await self._mesh.join(ticket)
        return self._info(inviter)

    async def _show(self, peer_id: PeerId) -> PeerInfo:
        if peer_id == self._mesh.peer_id:
            return await self.p2p_info()
        certificate = self._parts.membership.known(peer_id)
        if certificate is None:
            raise PeerNotFound(f"no peer of this fleet is called '{peer_id}'", peer=peer_id)
        return self._info(certificate)

    def _info(self, certificate: Certificate) -> PeerInfo:
        peer, running = certificate.sub, self._mesh.running
        online = running is not None and running.links.online(peer)
        known = self._parts.directory.addresses(peer)
        seen = self._parts.now() if online else self._parts.directory.last_seen(peer)
        standing = self._parts.membership.standing(peer)
        address, port = _first(known)
        return PeerInfo(
            id=peer,
            name=certificate.name,
            address=address,
            port=port,
            status="online" if online else "offline",
            services=SERVICES if online else [],
            last_seen=datetime.fromtimestamp(seen, UTC) if seen is not None else None,
            role=standing.role if standing else None,
            path=str(running.host.path(peer) or "") or None if running else None,
            addresses=known,
        )


def _first(known: list[str]) -> tuple[str, int]:
    """Host and port of the first address, one that others can use if there is one."""
    for text in _outward(known):
        try:
            parsed = addresses.parse(text)
        except ValueError:
            return text, 0
        return parsed.host, parsed.port
    return "", 0


def _outward(known: Iterable[str]) -> list[str]:
    """Without the peer's ID at the end; those that only this machine can use come last."""
    return sorted((addresses.bare(text) for text in known), key=_is_loopback)


def _is_loopback(text: str) -> bool:
    try:
        return addresses.parse(text).loopback
    except ValueError:
        return False
