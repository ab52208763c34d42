"""The tickets that this node has made: who may come in, how often, until when. Five wrong tries burn one."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from ...protocols.errors import Forbidden, Overloaded
from ...protocols.peer import InviteRequest
from ...protocols.ticket import ID_SIZE, NONCE_SIZE, SECRET_SIZE, TicketContent
from ...protocols.tolerant import decode_tolerantly
from ..database import PASSING_FAULTS
from ..limits import has_no_place
from .host import PeerId
from .store import KeyValueStore

MAX_TRIES = 5
MAX_TICKETS = 1000
KEPT = 86400
"""Seconds for which a ticket is remembered after its end, so that whoever holds it learns what is wrong with it."""
NONCE_LIFE = 30.0
MAX_NONCES = 64
LOOK_FOR_ENDS_EVERY = 0.5
"""Seconds, at most, after which a ticket ends with the token that made it."""
UNKNOWN = "the ticket is not valid here: it was never made, or is long forgotten; ask for a new one"


class _Issued(msgspec.Struct, kw_only=True):
    """A ticket as it is kept. Times in seconds of the epoch; `owner` and `until` are of the `Caller` that made it."""

    id: bytes
    secret: bytes
    role: Role
    limits: Limits
    expires: int
    uses: int
    wrong: int = 0
    barred: list[str] = []
    owner: str = ""
    until: float | None = None
    ended: bool = False

    @property
    def burnt(self) -> bool:
        return self.wrong >= MAX_TRIES


@dataclass(frozen=True, slots=True)
class _Challenge:
    ticket: bytes
    ours: bytes
    theirs: bytes
    until: float


class TicketBook:
    """Made by `open_tickets`."""

    def __init__(self, store: KeyValueStore, peer_id: PeerId, now: Callable[[], float]) -> None:
        self._store, self._peer_id, self._now = store, peer_id, now
        self._issued: dict[bytes, _Issued] = {}
        self._challenges: dict[PeerId, _Challenge] = {}

    @property
    def live(self) -> bool:
        """Whether any ticket can still be redeemed: only then may a stranger connect."""
        now = self._now()
        return any(t.uses > 0 and not t.burnt and not t.ended and t.expires > now for t in self._issued.values())

    async def make(self, invite: InviteRequest, addresses: Sequence[str], owner: Caller = LOCAL_ADMIN) -> TicketContent:
        """Make a ticket for `owner`. Raises: Overloaded."""
        await self._forget()
        own = sum(ticket.owner == owner.principal for ticket in self._issued.values())
        if has_no_place(MAX_TICKETS, len(self._issued), own):
            raise Overloaded(f"{MAX_TICKETS} tickets are out; wait until some have expired")
        issued = _Issued(
            id=secrets.token_bytes(ID_SIZE),
            secret=secrets.token_bytes(SECRET_SIZE),
            role=invite.role,
            limits=invite.limits or Limits(),
            expires=int(self._now()) + invite.expires,
            uses=invite.uses,
            owner=owner.principal,
            until=owner.until,
        )
        await self._save(issued)
        self._issued[issued.id] = issued
        return self._content(issued, addresses)

    def challenge(self, joiner: PeerId, ticket: bytes, nonce: bytes) -> bytes:
        """Return our nonce for a stranger, whether the ticket is known or not; that of an unknown one is not kept.

        Raises: Overloaded when many are joining.
        """
        now, ours = self._now(), secrets.token_bytes(NONCE_SIZE)
        if ticket not in self._issued:
            return ours
        self._challenges = {peer: c for peer, c in self._challenges.items() if c.until > now and peer != joiner}
        if len(self._challenges) >= MAX_NONCES:
            raise Overloaded("too many nodes are joining; try again in a minute", retry_after=60)
        self._challenges[joiner] = _Challenge(ticket, ours, nonce, now + NONCE_LIFE)
        return ours

    def is_joining(self, peer: PeerId) -> bool:
        """Return whether a stranger has named a ticket of ours a moment ago."""
        challenge = self._challenges.get(peer)
        return challenge is not None and challenge.until > self._now()

    async def bar(self, peers: Collection[PeerId]) -> None:
        """Refuse all tickets made until now to peers that were revoked."""
        now = self._now()
        for issued in self._issued.values():
            new = [peer for peer in peers if peer not in issued.barred]
            if new and issued.expires > now and issued.uses > 0:
                issued.barred = [*issued.barred, *new]
                await self._save(issued)

    async def end_with_principals(self, holds: Callable[[str, float | None], bool]) -> None:
        """End the tickets of tokens that were revoked or have expired; runs until it is cancelled."""
        while True:
            owned = [ticket for ticket in self._issued.values() if ticket.owner and not ticket.ended]
            for issued in [ticket for ticket in owned if not holds(ticket.owner, ticket.until)]:
                issued.ended = True
                with suppress(*PASSING_FAULTS):  # it has ended all the same, and is looked at again at the next start
                    await self._save(issued)
            await trio.sleep(LOOK_FOR_ENDS_EVERY)

    async def redeem(self, joiner: PeerId, ticket: bytes, proof: bytes) -> tuple[Role, Limits, bytes]:
        """Use the ticket up once; gives what it is good for, and our half of the proof.

        Raises: Forbidden. The message says what is wrong only to one who holds the secret.
        """
        challenge = self._challenges.pop(joiner, None)
        issued = self._issued.get(ticket)
        if challenge is None or challenge.ticket != ticket or challenge.until <= self._now() or issued is None:
            raise Forbidden(UNKNOWN)
        content = self._content(issued, ())
        expected = content.proof("joiner", joiner, challenge.ours, challenge.theirs)
        if not hmac.compare_digest(expected, proof):
            issued.wrong += 1
            await self._save(issued)
            raise Forbidden(UNKNOWN)
        self._check(issued, joiner)
        issued.uses -= 1
        await self._save(issued)
        return issued.role, issued.limits, content.proof("inviter", joiner, challenge.ours, challenge.theirs)

    def _check(self, issued: _Issued, joiner: PeerId) -> None:
        if joiner in issued.barred:
            raise Forbidden("this node was revoked since the ticket was made; ask for a new one")
        if issued.ended:
            raise Forbidden("the token that made the ticket was revoked or has expired; ask for a new one")
        if issued.burnt:
            raise Forbidden(f"the ticket was tried wrongly {MAX_TRIES} times and is burnt; ask for a new one")
        if issued.expires <= self._now():
            raise Forbidden("the ticket has expired; ask for a new one")
        if issued.uses <= 0:
            raise Forbidden("the ticket has been used up; ask for a new one")

    def _content(self, issued: _Issued, addresses: Sequence[str]) -> TicketContent:
        return TicketContent(
            inviter=self._peer_id,
            id=issued.id,
            secret=issued.secret,
            expires=issued.expires,
            addresses=tuple(addresses),
        )

    async def _save(self, issued: _Issued) -> None:
        await self._store.put("ticket", issued.id.hex(), msgspec.msgpack.encode(issued))

    async def _forget(self) -> None:
        now = self._now()
        for issued in [t for t in self._issued.values() if t.expires + KEPT < now]:
            del self._issued[issued.id]
            await self._store.drop("ticket", issued.id.hex())

    async def load(self) -> None:
        for packed in (await self._store.load("ticket")).values():
            issued = decode_tolerantly(packed, _Issued)
            self._issued[issued.id] = issued


async def open_tickets(store: KeyValueStore, peer_id: PeerId, now: Callable[[], float]) -> TicketBook:
    """The tickets on the store."""
    book = TicketBook(store, peer_id, now)
    await book.load()
    return book
