"""How a stranger with a ticket becomes a member: both ends of `/twinshare/join/1.0.0`."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable

import msgspec
import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import Forbidden, PeerMisbehaved, PeerUnreachable, Unsupported
from ...protocols.membership import Chain
from ...protocols.mesh import Candidacy, JoinService, Knock, News, Welcome
from ...protocols.messages import Hello, Request
from ...protocols.table import Dispatcher, methods
from ...protocols.ticket import NONCE_SIZE, TicketContent
from .calls import PeerCalls
from .gossip import Gossip
from .host import Host, PeerId, Stream
from .line import Line, open_line
from .parts import Parts
from .rpc import PeerServer

PROTOCOL = "/twinshare/join/1.0.0"
JOIN = methods(JoinService)
VISIT = 20.0
"""Seconds that a stranger may stay."""
SPREAD_PATIENCE = 1.0
MAX_WELCOME = 512 << 10
"""Bytes of news in a welcome; the rest is told later."""
REFUSED = (
    "the node that made the ticket refuses us: the ticket was used up, has expired, was burnt by wrong tries, "
    "or this node was put out of that fleet; ask for a new ticket"
)


class Door:
    """The inviter's end. `changed` is called with each new member."""

    def __init__(self, parts: Parts, gossip: Gossip, changed: Callable[[], None]) -> None:
        self._parts, self._gossip, self._changed = parts, gossip, changed
        self._server = PeerServer(Dispatcher({JoinService: self._bind}), self, None, silence=VISIT)

    async def serve(self, stream: Stream) -> None:
        with trio.move_on_after(VISIT):
            await self._server.serve(stream)

    def hello(self) -> Hello:
        return Hello(agent=self._parts.agent)

    def caller(self, peer_id: PeerId, request: Request) -> Caller:
        return Caller(principal=peer_id, role=Role.VIEWER, from_peer=True)

    def greeted(self, peer_id: PeerId, hello: Hello) -> None:
        """A stranger's HELLO is of no interest."""

    def _bind(self, caller: Caller) -> _Visit:
        return _Visit(self._parts, self._gossip, self._changed, caller.principal)


class _Visit:
    """`JoinService` for one stranger."""

    def __init__(self, parts: Parts, gossip: Gossip, changed: Callable[[], None], joiner: PeerId) -> None:
        self._parts, self._gossip, self._changed, self._joiner = parts, gossip, changed, joiner

    async def knock(self, knock: Knock) -> bytes:
        return self._parts.tickets.challenge(self._joiner, knock.ticket, knock.nonce)

    async def join(self, candidacy: Candidacy) -> Welcome:
        membership = self._parts.membership
        membership.require_issuer()
        role, limits, proof = await self._parts.tickets.redeem(self._joiner, candidacy.ticket, candidacy.proof)
        stranger = Caller(principal=self._joiner, role=Role.VIEWER, from_peer=True)
        async with self._parts.witness(stranger, "join", f"{candidacy.name} as {role}"):
            chain = await membership.issue(self._joiner, candidacy.name, role, limits)
        self._changed()
        # Whoever is online must know the new member before it knocks there.
        await self._gossip.spread_and_wait(News(members=[chain]), SPREAD_PATIENCE)
        return Welcome(proof=proof, fleet=membership.fleet, chain=chain, news=_bounded(list(self._gossip.everything())))


def _bounded(pieces: list[News]) -> list[News]:
    size, kept = 0, []
    for news in pieces:
        size += len(msgspec.msgpack.encode(news))
        if size > MAX_WELCOME:
            break
        kept.append(news)
    return kept


async def join(host: Host, ticket: TicketContent, name: str, agent: str) -> tuple[str, Chain, list[News]]:
    """Redeem a ticket with the node that made it: the fleet, our chain, and what the inviter knows.

    Nothing is believed that the inviter has not proved by the ticket's secret.
    Raises: Forbidden, PeerUnreachable, PeerMisbehaved.
    """
    inviter = ticket.inviter
    try:
        await host.connect(inviter, ticket.addresses)
        async with open_line(host, inviter, Hello(name=name, agent=agent), VISIT, PROTOCOL) as line:
            welcome = await _redeem(host.peer_id, line, ticket, name)
    except Unsupported:
        raise Forbidden(REFUSED) from None
    except PeerUnreachable as error:
        if error.details.get("refused"):
            raise Forbidden(REFUSED) from None
        raise
    return welcome.fleet, welcome.chain, welcome.news


async def _redeem(me: PeerId, line: Line, ticket: TicketContent, name: str) -> Welcome:
    calls = PeerCalls(_only(line))
    ours = secrets.token_bytes(NONCE_SIZE)
    knock = Knock(ticket=ticket.id, nonce=ours)
    theirs: bytes = await calls.call(ticket.inviter, JOIN["knock"], {"knock": knock}, LOCAL_ADMIN, timeout=VISIT)
    proof = ticket.proof("joiner", me, theirs, ours)
    candidacy = Candidacy(ticket=ticket.id, proof=proof, name=name)
    welcome: Welcome = await calls.call(
        ticket.inviter, JOIN["join"], {"candidacy": candidacy}, LOCAL_ADMIN, timeout=VISIT
    )
    if not hmac.compare_digest(welcome.proof, ticket.proof("inviter", me, theirs, ours)):
        raise PeerMisbehaved("the node that we came to does not know the ticket's secret: it is not the inviter")
    return welcome


def _only(line: Line) -> Callable[[PeerId], Awaitable[Line]]:
    async def line_to(_peer: PeerId) -> Line:
        await trio.lowlevel.checkpoint()
        return line

    return line_to
