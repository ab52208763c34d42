"""Who belongs to our fleet, as this node knows it: the statements that it keeps, those of others and its own.

The rules are in `protocols.membership`, the reads in `membership_view.py`. A change is stored before it takes effect.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import count

import msgspec
import structlog
import trio

from ...protocols.access import Limits, Role
from ...protocols.errors import Conflict, Forbidden, PeerMisbehaved, PeerNotFound
from ...protocols.membership.drafts import Drafts, founders_name, require_authority
from ...protocols.membership.explain import consequences, dated_ahead, explain
from ...protocols.membership.rules import evaluate
from ...protocols.membership.statement_set import StatementSet
from ...protocols.membership.statements import (
    MAX_LABEL,
    Certificate,
    Chain,
    Revocation,
    Statement,
    as_label,
)
from ...protocols.mesh import GossipUpdate
from ...protocols.peer import RevocationEffect
from .host import PeerId
from .membership_view import MembershipView, Now, Override
from .signing import Signer
from .statement_rows import StatementRows
from .store import KeyValueStore
from .verification import Verifier

log = structlog.get_logger(__name__)


class Membership(MembershipView):
    """Made by `open_membership`; changes what is known."""

    def __init__(
        self,
        store: KeyValueStore,
        signer: Signer,
        name: str,
        overrides: Mapping[PeerId, Override],
        now: Now,
        verifier: Verifier,
    ) -> None:
        super().__init__(signer.peer_id, name, overrides, now)
        self._store, self._signer = store, signer
        self._verifier, self._rows = verifier, StatementRows(store)
        self._lock = trio.Lock()

    # -- statements of others

    async def learn(self, update: GossipUpdate, source: PeerId | None = None) -> GossipUpdate:
        """Take in what verifies; returns the part that was new. Raises: RateLimited when `source` sends too much."""
        held = [statement.token for statement in self._known.statements]
        statements = await self._verifier.read(update, held, source)
        async with self._lock:
            new = await self._take(statements)
        return self._update(new)

    async def _take(self, statements: Collection[Statement], *, own: bool = False) -> list[Statement]:
        """Store statements, then keep them; what had to go for them goes from the store, too."""
        trial = self._known.copy()
        kept, dropped = trial.add(statements, self._now(), own=own)
        if not kept:
            return []
        roster = trial.roster(self._now())
        await self._rows.put((statement, trial.chain(statement.issuer, roster)) for statement in kept)
        self._known = trial
        await self._rows.drop(statement.id for statement in dropped)
        return kept

    def revoked_in(self, update: GossipUpdate) -> list[PeerId]:
        """Return whom the revocations of an update that was learnt are about."""
        tokens = {signed.token for signed in update.revocations}
        return sorted({s.sub for s in self._known.statements if s.token in tokens}) if tokens else []

    # -- statements of our own

    def require_issuer(self) -> Certificate:
        """Our own certificate, if it lets us make others. Raises: Forbidden."""
        own = self.valid_certificate(self.peer_id)
        if own is None:
            raise Forbidden("this node is no admin of its fleet: its own membership is not valid", role_needed="admin")
        require_authority(self._roster, self.peer_id, self._now())
        return own

    def free_name(self, name: str, sub: PeerId) -> str:
        """Return the name as a label that no other member has, with a number if need be."""
        label = as_label(name)
        taken = {peer.name.casefold() for peer in self.peers if peer.sub != sub} | {as_label(self.name).casefold()}
        numbered = (f"{label[: MAX_LABEL - len(str(n)) - 1]}-{n}" for n in count(2))
        return label if label.casefold() not in taken else next(n for n in numbered if n.casefold() not in taken)

    async def issue(self, sub: PeerId, name: str, role: Role, limits: Limits, rank: int = 0) -> Chain:
        """Make `sub` a member, or renew it. Raises: Forbidden when our own certificate does not allow it."""
        name = as_label(name)
        self.require_issuer()
        async with self._lock:
            drafts = Drafts(self._known, self.peer_id, self._now())
            made = drafts.certify(sub, name, role, limits, rank)
            signed = await self._sign(drafts.made)
        [token] = [statement.token for statement in signed if statement.id == made.id]
        return (token, *(link.token for link in self._chain(self.peer_id)))

    async def renew(self, sub: PeerId) -> Chain:
        """Return a later certificate for a member. Raises: Forbidden, Conflict when it would end no later."""
        member, authority = self._roster.members.get(sub), self._roster.authorities.get(sub)
        if member is None or self.valid_certificate(sub) is None:
            raise Forbidden(f"{sub} is no member with a valid certificate")
        if authority and authority.current and member.issuer != self.peer_id:
            raise Conflict(f"{member.issuer} has made this node an admin and renews its certificate")
        own = self.known(self.peer_id)
        old = member.certificate
        if own is None or own.exp <= old.exp + 3600:
            raise Conflict("this node's own certificate ends no later")
        return await self.issue(sub, old.name, old.role, old.limits, member.rank)

    def consequences(self, peer_id: PeerId, leave_out: Collection[PeerId] = ()) -> list[RevocationEffect]:
        """Return what revoking a peer would change. Raises: PeerNotFound, Forbidden, InvalidRequest."""
        return consequences(self._known, self.peer_id, peer_id, self._now(), leave_out)[1]

    async def revoke(self, peer_id: PeerId, leave_out: Collection[PeerId] = ()) -> GossipUpdate:
        """Put a member out, but not those whom it had admitted: they get certificates of ours.

        Returns what the others must learn. Raises: PeerNotFound, Forbidden, InvalidRequest for this node itself.
        """
        if self.known(peer_id) is None:
            raise PeerNotFound(f"{peer_id} is no member of this fleet", peer=peer_id)
        async with self._lock:
            made, _ = consequences(self._known, self.peer_id, peer_id, self._now(), leave_out)
            signed = await self._sign(made)
        if self.valid_certificate(peer_id) is not None:
            raise Conflict(f"{peer_id} is still a member: {self.explain(peer_id).why}", peer=peer_id)
        return self._update(signed)

    async def mend_dates(self) -> GossipUpdate:
        """Sign anew what our clock, wrong at the time, dated ahead of the present; returns what others must learn."""
        signed: list[Statement] = []
        async with self._lock:
            for statement in dated_ahead(self._known, self.peer_id, self._now()):
                claims = statement.claims
                drafts = Drafts(self._known, self.peer_id, self._now())
                try:
                    if isinstance(claims, Revocation):
                        drafts.revoke(claims.sub, claims.head)
                    elif claims.sub != self.fleet:
                        drafts.certify(claims.sub, claims.name, claims.role, claims.limits, claims.rank)
                except (Forbidden, PeerNotFound) as error:
                    log.info("statement dated ahead not signed anew", peer=claims.sub, reason=error.message)
                    continue
                signed += await self._sign(drafts.made)
        return self._update(signed)

    async def _sign(self, drafts: Iterable[Statement]) -> list[Statement]:
        signed = [
            msgspec.structs.replace(draft, token=self._signer.sign(msgspec.json.encode(draft.claims)))
            for draft in drafts
        ]
        return await self._take(signed, own=True)

    # -- fleets

    async def adopt(self, fleet: str, chain: Chain, issuer: PeerId) -> None:
        """Leave our fleet for another, of which `chain` makes us a member. Raises: PeerMisbehaved."""
        statements = await self._verifier.read(GossipUpdate(members=[chain]), (), None)
        roster = evaluate(fleet, statements, self._now())
        own = roster.members.get(self.peer_id)
        if own is None or own.issuer != issuer or own.certificate.exp <= self._now():
            why = explain(StatementSet(fleet, statements), self.peer_id, self._now())
            raise PeerMisbehaved(f"the certificate that we were given does not make us a member: {why.why}")
        await self._move(fleet)
        async with self._lock:
            await self._take(statements)

    async def leave(self) -> None:
        """Found a fleet of our own in place of the one we are in. Raises: Conflict for the founder of a fleet."""
        if self.fleet == self.peer_id:
            others = "" if self.alone else ": its members can leave it or be revoked"
            raise Conflict(f"this node founded its fleet and cannot leave it{others}")
        await self._move(self.peer_id)
        await self.refound()

    async def _move(self, fleet: str) -> None:
        async with self._lock:
            await self._rows.clear()
            await self._store.put("fleet", "name", fleet.encode())
            self._known = StatementSet(fleet)

    async def load(self) -> None:
        """Read the store; found a fleet of our own if there is none."""
        fleet = (await self._store.load("fleet")).get("name", b"").decode()
        if not fleet:
            await self._store.put("fleet", "name", self.peer_id.encode())
            fleet = self.peer_id
        stored = await self._rows.load()
        self._known = StatementSet(fleet, stored)
        await self._rows.drop(statement.id for statement in stored if statement.id not in self._known)
        await self._rows.put((statement, self._chain(statement.issuer)) for statement in self._known.statements)
        if fleet == self.peer_id:
            await self.refound()
        await self.mend_dates()

    async def refound(self) -> Chain | None:
        """As the founder, say how our node is called; nodes of the first release want it as a certificate, renewed.

        Returns it if it is new.
        """
        async with self._lock:
            draft = founders_name(self._known, as_label(self.name), self._now())
            signed = await self._sign([draft]) if draft else []
        return (signed[0].token,) if signed else None


async def open_membership(
    store: KeyValueStore,
    signer: Signer,
    name: str,
    overrides: Mapping[PeerId, Override],
    now: Now,
    verifier: Verifier | None = None,
) -> Membership:
    """Read what the store knows; a node that knows nothing founds a fleet of its own."""
    membership = Membership(store, signer, name, overrides, now, verifier or Verifier())
    await membership.load()
    return membership
