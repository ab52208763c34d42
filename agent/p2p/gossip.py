"""Gossip: members send each other certificates, revocations and peer records, and pass on what was new to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec
import structlog
import trio

from ...protocols.access import LOCAL, LOCAL_ADMIN, Caller
from ...protocols.errors import TwinshareError
from ...protocols.events import P2pMessage
from ...protocols.membership.statements import Chain
from ...protocols.mesh import MAX_UPDATE_ITEMS, GossipUpdate, MeshService, Message, PeerRecord
from ...protocols.peer import MessageReply
from ...protocols.table import methods
from ..event_shares import VALUE_SIZE, count_values
from ..limits import Budget
from .calls import PeerCalls
from .context import MeshContext
from .host import PeerId
from .peer_session import PeerSession
from .peer_sessions import PeerSessions

log = structlog.get_logger(__name__)
MESH = methods(MeshService)
SEND_TIMEOUT = 10.0
FAN_OUT = 4


class Gossip:
    """Send and take in gossip updates.

    `own_record` returns this node's signed peer record; `changed` is called when members or their addresses changed.
    """

    def __init__(
        self,
        context: MeshContext,
        sessions: PeerSessions,
        own_record: Callable[[], PeerRecord],
        changed: Callable[[], None],
        nursery: trio.Nursery,
    ) -> None:
        self._context, self._sessions, self._nursery = context, sessions, nursery
        self._own_record, self._changed = own_record, changed
        self._calls = PeerCalls(sessions.session_to, context.title)

    def bind(self, caller: Caller) -> BoundMesh:
        """Return the `MeshService` for one peer's calls."""
        return BoundMesh(self, self._context, caller.principal)

    def everything(self) -> Iterator[GossipUpdate]:
        """Yield all that this node knows in as few updates as the bounds allow: one for a fleet of a hundred."""
        records = iter([self._own_record(), *self._context.address_book.peer_records()])
        for update in self._context.membership.everything():
            yield msgspec.structs.replace(update, records=list(islice(records, MAX_UPDATE_ITEMS)))
        while rest := list(islice(records, MAX_UPDATE_ITEMS)):
            yield GossipUpdate(records=rest)

    async def send_everything(self, session: PeerSession) -> None:
        """Send all that this node knows to one peer."""
        for update in list(self.everything()):
            await self.send_update(session.peer_id, update)

    async def send_update(self, peer: PeerId, update: GossipUpdate) -> None:
        """Send an update to one peer. A failure is logged only: `compare` sends it again."""
        try:
            await self._calls.call(peer, MESH["tell"], {"update": update}, LOCAL_ADMIN, timeout=SEND_TIMEOUT)
        except TwinshareError as error:
            log.debug("gossip update not delivered", peer=peer, why=error.message)

    async def take(self, update: GossipUpdate, source: PeerId) -> None:
        """Take in an update, and pass on what was new."""
        learnt = await self._context.membership.learn(update, source)
        await self._context.tickets.bar(self._context.membership.revoked_in(learnt))
        fresh = await self._take_records(update.records, source)
        if new := GossipUpdate(members=learnt.members, revocations=learnt.revocations, records=fresh):
            self._changed()
            for record in fresh:
                self._sessions.retry_now(record.peer)
            self.spread(new, source)

    async def _take_records(self, records: Sequence[PeerRecord], source: PeerId) -> list[PeerRecord]:
        """Take what subjects have signed, or say themselves; anything else is a hint. Return what was new."""
        membership, book = self._context.membership, self._context.address_book
        mine = membership.peer_id
        about = [record for record in records if record.peer != mine and membership.known(record.peer) is not None]
        unknown = [record for record in about if record.token and not book.has(record)]
        signed = await self._context.verifier.read_records(unknown, source)
        by_peer = {record.peer: record for record in signed}
        fresh = []
        for record in about:
            own = record.peer == source
            if (proven := by_peer.get(record.peer)) is not None:
                if await book.declare(proven, first_hand=own):
                    fresh.append(proven)
            elif own and not record.token:
                fresh += [record] if await book.declare(record, first_hand=True) else []
            elif not record.token:
                self._sessions.hint(record.peer, record.addresses)
        return fresh

    async def take_hello(self, record: PeerRecord) -> None:
        """Take the addresses that a member's HELLO carries; it sends them signed as well, to be passed on."""
        known = self._context.membership.known(record.peer) is not None
        if known and await self._context.address_book.declare(record, first_hand=True):
            self._sessions.retry_now(record.peer)

    def spread(self, update: GossipUpdate, source: PeerId | None = None) -> None:
        """Send an update of our own to every online peer, and one of another peer to `FAN_OUT` of them."""
        peers = [session.peer_id for session in self._sessions.live if session.peer_id != source]
        if source is not None:
            peers = self._context.rng.sample(peers, min(FAN_OUT, len(peers)))
        for peer in peers:
            self._nursery.start_soon(self.send_update, peer, update)

    async def compare(self) -> None:
        """Send all that this node knows to one random peer, which repairs updates that were lost."""
        if sessions := self._sessions.live:
            await self.send_everything(self._context.rng.choice(sessions))

    async def spread_and_wait(self, update: GossipUpdate, timeout: float) -> None:
        """Send an update to every online peer, and wait at most `timeout` seconds until they have it.

        A slow peer still gets it: a link that was down for less than the dead peer timeout opens no new session.
        """
        delivered = [(session.peer_id, trio.Event()) for session in self._sessions.live]
        for peer, event in delivered:
            self._nursery.start_soon(self._deliver, peer, update, event)
        with trio.move_on_after(timeout):
            for _, event in delivered:
                await event.wait()

    async def _deliver(self, peer: PeerId, update: GossipUpdate, delivered: trio.Event) -> None:
        await self.send_update(peer, update)
        delivered.set()

    async def renew_with(self, peer: PeerId) -> None:
        """Ask a peer for a later certificate, if ours expires soon."""
        if not self._context.membership.renewable:
            return
        try:
            chain: Chain = await self._calls.call(peer, MESH["renew"], {}, LOCAL_ADMIN, timeout=SEND_TIMEOUT)
        except TwinshareError as error:
            log.debug("certificate not renewed", peer=peer, why=error.message)
            return
        await self.take(GossipUpdate(members=[chain]), source=peer)

    async def send_message(self, peer: PeerId, message: Message) -> MessageReply:
        """Send a user's message. Raises: what calls raise."""
        reply: MessageReply = await self._calls.call(peer, MESH["deliver"], {"message": message}, LOCAL_ADMIN)
        return reply


class BoundMesh:
    """The `MeshService` for one peer."""

    def __init__(self, gossip: Gossip, context: MeshContext, peer: PeerId) -> None:
        self._gossip, self._context, self._peer = gossip, context, peer

    async def tell(self, update: GossipUpdate) -> None:
        await self._gossip.take(update, self._peer)

    async def deliver(self, message: Message) -> MessageReply:
        return deliver(self._context, self._peer, message)

    async def renew(self) -> Chain:
        return await self._context.membership.renew(self._peer)


def deliver(context: MeshContext, sender: PeerId, message: Message) -> MessageReply:
    """Answer a HELLO message; publish any other one as an event. Raises: RateLimited for many values."""
    if message.message_type == "HELLO":
        return MessageReply(status="ok", message="Hello received")
    context.meter.charge(sender, Budget.MESSAGE_BYTES, VALUE_SIZE * count_values(message.data))
    known = context.membership.known(sender)
    context.publish(
        P2pMessage(
            sender=sender,
            name=known.name if known else "",
            message_type=message.message_type,
            data=message.data,
        ),
        sender if sender != context.membership.peer_id else LOCAL,
    )
    return MessageReply(status="ok", message=f"{message.message_type} received")
