"""How a stranger with a ticket becomes a member: both ends of `/twinshare/join/1.0.0`."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable

import msgspec
import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import Forbidden, InvalidRequest, PeerMisbehaved, PeerUnreachable, Unsupported
from ...protocols.membership.statements import Chain, as_label, is_label
from ...protocols.mesh import GossipUpdate, JoinHello, JoinReply, JoinRequest, JoinService
from ...protocols.messages import Hello, Request
from ...protocols.table import Dispatcher, methods
from ...protocols.ticket import NONCE_SIZE, TicketContent
from ..limits import Budget
from .calls import PeerCalls
from .context import MeshContext
from .gossip import Gossip
from .host import Host, PeerId, Stream
from .peer_session import PeerSession, open_peer_session
from .rpc import PeerServer

PROTOCOL = "/twinshare/join/1.0.0"
JOIN = methods(JoinService)
JOIN_TIMEOUT = 20.0
"""Seconds that a joining node may stay connected."""
SPREAD_TIMEOUT = 1.0
MAX_REPLY_UPDATES = 512 << 10
"""Bytes of gossip updates in a join reply; the rest follows as gossip."""
REFUSED = (
    "the node that made the ticket refuses us: the ticket was used up, has expired, was burnt by wrong tries, "
    "or this node was put out of that fleet; ask for a new ticket"
)


class JoinServer:
    """The inviter's end. `changed` is called with each new member."""

    def __init__(self, context: MeshContext, gossip: Gossip, changed: Callable[[], None]) -> None:
        self._context, self._gossip, self._changed = context, gossip, changed
        self._server = PeerServer(Dispatcher({JoinService: self._bind}), self, None, peer_timeout=JOIN_TIMEOUT)

    async def serve(self, stream: Stream) -> None:
        with trio.move_on_after(JOIN_TIMEOUT):
            await self._server.serve(stream)

    def hello(self) -> Hello:
        return Hello(agent=self._context.agent)

    def caller(self, peer_id: PeerId, method: str, request: Request) -> Caller:
        self._context.meter.charge(peer_id, Budget.CALLS)
        return Caller(principal=peer_id, role=Role.VIEWER, from_peer=True)

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        """A stranger's HELLO is of no interest."""

    def _bind(self, caller: Caller) -> _BoundJoin:
        return _BoundJoin(self._context, self._gossip, self._changed, caller.principal)


class _BoundJoin:
    """`JoinService` for one stranger."""

    def __init__(self, context: MeshContext, gossip: Gossip, changed: Callable[[], None], joiner: PeerId) -> None:
        self._context, self._gossip, self._changed, self._joiner = context, gossip, changed, joiner

    async def greet(self, hello: JoinHello) -> bytes:
        return self._context.tickets.challenge(self._joiner, hello.ticket, hello.nonce)

    async def join(self, request: JoinRequest) -> JoinReply:
        membership = self._context.membership
        membership.require_issuer()
        if not is_label(request.name):
            raise InvalidRequest("a node's name consists of A-Z, a-z, 0-9, dots and hyphens, at most 63", path="name")
        # With its ticket used up it is no longer a guest by that, and not yet a member.
        with self._context.joining(self._joiner):
            role, limits, proof = await self._context.tickets.redeem(self._joiner, request.ticket, request.proof)
            stranger = Caller(principal=self._joiner, role=Role.VIEWER, from_peer=True)
            async with self._context.audit_sink(stranger, "join", f"{request.name} as {role}"):
                name = membership.free_name(request.name, self._joiner)
                chain = await membership.issue(self._joiner, name, role, limits)
        self._changed()
        # Whoever is online must know the new member before it connects to them.
        await self._gossip.spread_and_wait(GossipUpdate(members=[chain]), SPREAD_TIMEOUT)
        return JoinReply(
            proof=proof, fleet=membership.fleet, chain=chain, updates=_bounded(list(self._gossip.everything()))
        )


def _bounded(pieces: list[GossipUpdate]) -> list[GossipUpdate]:
    size, kept = 0, []
    for update in pieces:
        size += len(msgspec.msgpack.encode(update))
        if size > MAX_REPLY_UPDATES:
            break
        kept.append(update)
    return kept


async def join(host: Host, ticket: TicketContent, name: str, agent: str) -> tuple[str, Chain, list[GossipUpdate]]:
    """Redeem a ticket with the node that made it: the fleet, our chain, and what the inviter knows.

    Nothing is believed that the inviter has not proved by the ticket's secret.
    Raises: Forbidden, PeerUnreachable, PeerMisbehaved.
    """
    inviter = ticket.inviter
    try:
        await host.connect(inviter, ticket.addresses)
        async with open_peer_session(host, inviter, Hello(name=name, agent=agent), JOIN_TIMEOUT, PROTOCOL) as session:
            reply = await _redeem(host.peer_id, session, ticket, name)
    except Unsupported:
        raise Forbidden(REFUSED) from None
    except PeerUnreachable as error:
        if error.details.get("refused"):
            raise Forbidden(REFUSED) from None
        raise
    return reply.fleet, reply.chain, reply.updates


async def _redeem(me: PeerId, session: PeerSession, ticket: TicketContent, name: str) -> JoinReply:
    calls = PeerCalls(_only(session))
    ours = secrets.token_bytes(NONCE_SIZE)
    hello = JoinHello(ticket=ticket.id, nonce=ours)
    theirs: bytes = await calls.call(ticket.inviter, JOIN["greet"], {"hello": hello}, LOCAL_ADMIN, timeout=JOIN_TIMEOUT)
    proof = ticket.proof("joiner", me, theirs, ours)
    request = JoinRequest(ticket=ticket.id, proof=proof, name=as_label(name))
    reply: JoinReply = await calls.call(
        ticket.inviter, JOIN["join"], {"request": request}, LOCAL_ADMIN, timeout=JOIN_TIMEOUT
    )
    if not hmac.compare_digest(reply.proof, ticket.proof("inviter", me, theirs, ours)):
        raise PeerMisbehaved("the node that we came to does not know the ticket's secret: it is not the inviter")
    return reply


def _only(session: PeerSession) -> Callable[[PeerId], Awaitable[PeerSession]]:
    async def session_to(_peer: PeerId) -> PeerSession:
        await trio.lowlevel.checkpoint()
        return session

    return session_to
