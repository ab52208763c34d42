"""Who belongs to our fleet, answered from memory: what follows from the statements that this node knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from ...protocols.access import Limits, Role
from ...protocols.membership.explain import Explanation, explain
from ...protocols.membership.rules import SKEW, Roster
from ...protocols.membership.statement_set import StatementSet
from ...protocols.membership.statements import (
    RENEW_BEFORE,
    Certificate,
    SignedRevocation,
    Statement,
)
from ...protocols.mesh import MAX_UPDATE_ITEMS, GossipUpdate
from .host import PeerId

Now = Callable[[], float]
ENDLESS = 2**40
"""The end of the founder's membership, which has none, in seconds of the epoch."""


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What this node's own configuration says of a peer; it can only lower what the certificate allows."""

    deny: bool = False
    role: Role | None = None
    limits: Limits = Limits()


_NO_OVERRIDE = Override()


class MembershipView:
    """The reads of `Membership`. Times are seconds of the epoch, from `now`."""

    def __init__(self, peer_id: PeerId, name: str, overrides: Mapping[PeerId, Override], now: Now) -> None:
        self.peer_id, self.name = peer_id, name
        self._overrides, self._now = overrides, now
        self._known = StatementSet(peer_id)

    @property
    def fleet(self) -> PeerId:
        """The founder's peer ID."""
        return self._known.fleet

    @property
    def _roster(self) -> Roster:
        return self._known.roster(self._now())

    def valid_certificate(self, peer_id: PeerId) -> Certificate | None:
        """Return the certificate of a member that is valid now, lowered by our overrides; None for anybody else."""
        override = self._overrides.get(peer_id, _NO_OVERRIDE)
        certificate = self._certificate(peer_id)
        if certificate is None or override.deny or certificate.exp <= self._now():
            return None
        if override is _NO_OVERRIDE:
            return certificate
        role = certificate.role if override.role is None else certificate.role.at_most(override.role)
        return msgspec.structs.replace(certificate, role=role, limits=certificate.limits.lowered(override.limits))

    def _certificate(self, peer_id: PeerId) -> Certificate | None:
        if peer_id == self.fleet:
            name = self.name if peer_id == self.peer_id else self._roster.name or peer_id
            return Certificate(fleet=peer_id, sub=peer_id, name=name, role=Role.ADMIN, iat=0, exp=ENDLESS)
        member = self._roster.members.get(peer_id)
        return member.certificate if member else None

    def denies(self, peer_id: PeerId) -> bool:
        """Whether our own configuration shuts a peer out."""
        return self._overrides.get(peer_id, _NO_OVERRIDE).deny

    def known(self, peer_id: PeerId) -> Certificate | None:
        """Return the certificate of anybody who is or was a member."""
        if (certificate := self._certificate(peer_id)) is not None:
            return certificate
        about = [s for s in self._known.statements if s.sub == peer_id and isinstance(s.claims, Certificate)]
        newest = max(about, key=lambda s: s.claims.iat, default=None)
        return newest.claims if newest and isinstance(newest.claims, Certificate) else None

    @property
    def peers(self) -> list[Certificate]:
        """The other members, those whose certificates have ended too: they may be renewed."""
        found = [member.certificate for peer, member in self._roster.members.items() if peer != self.peer_id]
        founder = self._certificate(self.fleet)
        return found if founder is None or self.fleet == self.peer_id else [founder, *found]

    @property
    def alone(self) -> bool:
        """Whether nobody else is in our fleet, or we are not in it any more: then we may join another."""
        own = self.valid_certificate(self.peer_id)
        return own is None or not any(self.valid_certificate(peer.sub) for peer in self.peers)

    @property
    def renewable(self) -> bool:
        """Whether our certificate nears its end."""
        own = self.known(self.peer_id)
        return own is not None and own.exp - self._now() < RENEW_BEFORE

    @property
    def clock_behind(self) -> float:
        """Seconds by which this clock is behind the last statement of another issuer, if that is too many."""
        issuers = {s.issuer for s in self._known.statements} - {self.peer_id}
        last = [statement.claims.iat for issuer in issuers if (statement := self._known.last(issuer))]
        behind = max(last, default=0) - self._now()
        return behind if behind > SKEW else 0.0

    def explain(self, peer_id: PeerId) -> Explanation:
        """Return why a peer is a member, or is none."""
        return explain(self._known, peer_id, self._now())

    def everything(self) -> Iterator[GossipUpdate]:
        """Yield all statements, in updates of bounded size."""
        yield from self._updates(self._known.statements)

    def _updates(self, statements: Iterable[Statement]) -> Iterator[GossipUpdate]:
        members, revocations = [], []
        for statement in sorted(statements, key=lambda s: (len(self._chain(s.issuer)), s.order)):
            chain = tuple(link.token for link in self._chain(statement.issuer))
            if isinstance(statement.claims, Certificate):
                members.append((statement.token, *chain))
            else:
                revocations.append(SignedRevocation(token=statement.token, chain=chain))
        chains, signed = iter(members), iter(revocations)
        while update := GossipUpdate(
            members=list(islice(chains, MAX_UPDATE_ITEMS)), revocations=list(islice(signed, MAX_UPDATE_ITEMS))
        ):
            yield update

    def _update(self, statements: Iterable[Statement]) -> GossipUpdate:
        pieces = list(self._updates(statements))
        members = [chain for piece in pieces for chain in piece.members]
        return GossipUpdate(members=members, revocations=[r for piece in pieces for r in piece.revocations])

    def _chain(self, issuer: PeerId) -> tuple[Statement, ...]:
        return self._known.chain(issuer, self._roster)
