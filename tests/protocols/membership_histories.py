"""Histories of a fleet for the tests of membership: honest acts, and what adversaries sign with the keys they hold.

A signature is genuine by construction: only the issuer that is named makes a statement.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import msgspec

from twinshare.protocols.access import Limits, Role
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.membership.drafts import Drafts
from twinshare.protocols.membership.rules import Roster, evaluate
from twinshare.protocols.membership.statement_set import StatementSet
from twinshare.protocols.membership.statements import (
    LIFETIME,
    MAX_SEEN,
    Certificate,
    Revocation,
    Statement,
    statement_id,
)

FOUNDER = "F"
FIRST, SECOND = ("A1", "A2"), ("B1", "B2")
OTHERS = ("C1", "O1", "O2", "O3", "V1", "V2")
PEERS = (FOUNDER, *FIRST, *SECOND, *OTHERS)
SYBIL = "X1"
START = 1_750_000_000
DAY = 86400


def sign(issuer: str, claims: Certificate | Revocation) -> Statement:
    """As if the issuer had signed it."""
    return Statement(issuer, claims, statement_id(issuer, msgspec.json.encode(claims)), f"{issuer}.token")


def certificate(issuer: str, sub: str, role: Role = Role.VIEWER, *, iat: int = START, **claims: object) -> Statement:
    """A certificate for 30 days."""
    made = {"fleet": FOUNDER, "sub": sub, "name": sub, "role": role, "iat": iat, "exp": iat + LIFETIME, "seq": 1}
    return sign(issuer, msgspec.convert(made | {"issuer": issuer} | claims, Certificate))


def revocation(issuer: str, sub: str, *, iat: int = START, seq: int = 1, **claims: object) -> Statement:
    """A revocation that vouches for nothing by default."""
    made = {"fleet": FOUNDER, "sub": sub, "by": issuer, "iat": iat, "number": seq, "seq": seq}
    return sign(issuer, msgspec.convert(made | claims, Revocation))


@dataclass
class History:
    """What all honest nodes know, at `now`."""

    now: float = START
    known: StatementSet = field(default_factory=lambda: StatementSet(FOUNDER))

    @property
    def roster(self) -> Roster:
        return self.known.roster(self.now)

    def rank(self, peer: str) -> float:
        """Without authority it is infinite."""
        authority = self.roster.authorities.get(peer)
        return authority.rank if authority and authority.current and authority.exp > self.now else math.inf

    def drafts(self, peer: str) -> Drafts:
        return Drafts(self.known, peer, self.now)

    def take(self, drafts: Drafts) -> None:
        self.known.add(drafts.made, self.now)

    def certify(self, by: str, sub: str, role: Role = Role.OPERATOR, limits: Limits | None = None) -> None:
        drafts = self.drafts(by)
        drafts.certify(sub, sub, role, limits or Limits())
        self.take(drafts)

    def revoke(self, by: str, sub: str) -> None:
        drafts = self.drafts(by)
        drafts.revoke_with_adoption(sub)
        self.take(drafts)


def fleet() -> History:
    """Two admins of the founder, an admin of each, and an admin at the end of a chain; others admitted by all."""
    history = History()
    for by, sub, role in (
        ("F", "A1", Role.ADMIN),
        ("F", "A2", Role.ADMIN),
        ("A1", "B1", Role.ADMIN),
        ("A2", "B2", Role.ADMIN),
        ("B1", "C1", Role.ADMIN),
        ("F", "O1", Role.OPERATOR),
        ("A1", "O2", Role.OPERATOR),
        ("B2", "O3", Role.OPERATOR),
        ("A2", "V1", Role.VIEWER),
        ("B1", "V2", Role.VIEWER),
    ):
        history.certify(by, sub, role)
    return history


def live_on(history: History, rng: random.Random, acts: int) -> None:
    """Honest acts of whoever may do them; what the rules refuse is not done."""
    for _ in range(acts):
        history.now += rng.choice((1, 60, 3600, DAY))
        by, sub = rng.choice(PEERS[:5]), rng.choice(PEERS)
        try:
            if rng.random() < 0.4:
                history.revoke(by, sub)
            else:
                limits = Limits(vms=rng.randrange(3)) if rng.random() < 0.2 else Limits()
                history.certify(by, sub, rng.choice(list(Role)), limits)
        except TwinshareError:
            continue


def attack(history: History, rng: random.Random, adversaries: list[str], count: int) -> list[Statement]:
    """Whatever the adversaries can sign, in the knowledge of everything."""
    known = history.known.statements
    made: list[Statement] = []
    for _ in range(count):
        issuer = rng.choice(adversaries)
        sub = rng.choice((*PEERS, SYBIL, *adversaries))
        about = [s.id for s in (*known, *made) if s.sub == sub]
        own = [s for s in (*known, *made) if s.issuer == issuer]
        last = max((s.claims.seq for s in own), default=0)
        seq = min(rng.choice((last + 1, last + 1, last, rng.randint(0, last + 1), 0, 2**53)), 2**53)
        prev = rng.choice([s.id for s in own] or [""]) if rng.random() < 0.8 else ""
        iat = int(history.now) - rng.choice((0, 0, 1, DAY, 20 * DAY)) + rng.choice((0, 0, 299))
        if rng.random() < 0.4:
            signed = [s for s in (*known, *made) if s.issuer == sub]
            head = rng.choice(signed) if signed and rng.random() < 0.5 else None
            vouched = {"vouched": head.claims.seq, "head": head.id} if head else {}
            made.append(revocation(issuer, sub, iat=iat, seq=seq, prev=prev, **vouched))
            continue
        seen = about if rng.random() < 0.6 else rng.sample(about, rng.randint(0, len(about)))
        made.append(
            certificate(
                issuer,
                sub,
                rng.choice(list(Role)),
                iat=iat,
                exp=iat + rng.choice((1, DAY, LIFETIME)),
                seq=seq,
                prev=prev,
                seen=tuple(seen[-MAX_SEEN:]),
                rank=rng.choice((0, 0, 1, 2, 3)),
                since=rng.choice((-1, -1, 0, last, 2**53)),
            )
        )
    return made


def members(statements: list[Statement], now: float) -> dict[str, object]:
    """The members by these statements, to compare."""
    return dict(evaluate(FOUNDER, statements, now).members)
