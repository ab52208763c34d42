"""Who belongs to a fleet: a pure function of the set of signed statements that a node has, and of the time.

Authority is rank: the founder has rank 0, admins that it certified rank 1, admins that these certified rank 2. Others,
also admins at the end of a chain of three, have no authority over memberships. Ranks are settled from the top: what
makes somebody an authority depends on statements of higher rank alone, so no statement can undo what stands above it.

- The founder is its key: nothing that is stated about it has any effect.
- An authority is certified, re-certified and revoked only by those on its own path to the founder. Any authority may do
  so with everybody else, whoever admitted them.
- A revocation holds against every certificate that does not name it in `seen`; to overrule it takes the revoker's rank
  or a higher one.
- Of several valid certificates the one that has seen the others counts, else the one of the highest rank.
- What a revoked authority signed is void, but for certificates up to the last statement that its revokers vouch for.
- An authority whose own certificate has ended has no say until it is renewed; what it signed before does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec

from ..access import Limits, Role
from .statements import Certificate, Revocation, Statement

SKEW = 300
"""Seconds that clocks may differ: a certificate that is dated further ahead does not count yet."""
LAST_RANK = 2


class Authority(msgspec.Struct, frozen=True):
    """Somebody whose statements count. `path` leads from the founder to it, `chain` are the certificates of that path.

    `exp` is the earliest end in the chain. Statements up to `since` are void. Of a revoked one only the certificates
    count whose IDs are `vouched`.
    """

    peer: str
    rank: int
    path: tuple[str, ...]
    chain: tuple[Statement, ...] = ()
    exp: float = math.inf
    limits: Limits = Limits()
    since: int = -1
    vouched: frozenset[str] | None = None

    @property
    def current(self) -> bool:
        """Whether it is not revoked."""
        return self.vouched is None

    def counts(self, statement: Statement) -> bool:
        """Whether something that it signed is valid."""
        return statement.claims.seq > self.since and (self.vouched is None or statement.id in self.vouched)


class Member(msgspec.Struct, frozen=True):
    """A member with what its certificate amounts to: never more than its issuer's. The chain is its own first."""

    certificate: Certificate
    chain: tuple[Statement, ...]
    path: tuple[str, ...]
    rank: int

    @property
    def issuer(self) -> str:
        return self.chain[0].issuer


@dataclass(frozen=True, slots=True)
class Roster:
    """What a set of statements amounts to. `said` are the valid statements about each peer."""

    fleet: str
    members: Mapping[str, Member]
    authorities: Mapping[str, Authority]
    said: Mapping[str, list[Statement]]
    name: str = ""
    """What the founder calls its node."""


def evaluate(fleet: str, statements: Iterable[Statement], now: float) -> Roster:
    """The members of a fleet by all these statements; those whose time is over are among them."""
    by_issuer: dict[str, list[Statement]] = {}
    for statement in statements:
        if statement.claims.fleet == fleet and not _held_back(statement, now):
            by_issuer.setdefault(statement.issuer, []).append(statement)
    return _Evaluation(fleet, now, by_issuer).roster()


def _held_back(statement: Statement, now: float) -> bool:
    """A revocation that was taken once holds, also when the clock was set back since."""
    return isinstance(statement.claims, Certificate) and statement.claims.iat > now + SKEW


@dataclass(slots=True)
class _Evaluation:
    fleet: str
    now: float
    by_issuer: Mapping[str, list[Statement]]
    authorities: dict[str, Authority] = field(default_factory=dict)
    said: dict[str, list[Statement]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    def roster(self) -> Roster:
        about = [s for s in self.by_issuer.get(self.fleet, ()) if s.sub == self.fleet]
        names = [s for s in about if isinstance(s.claims, Certificate)]
        self._hear(Authority(self.fleet, 0, (self.fleet,)))
        for _ in range(LAST_RANK):
            self._promote()
        for sub in self.said:
            if sub not in self.members and (winner := self._winner(sub)) is not None:
                self.members[sub] = self._member(winner)
        name = _certificate(max(names, key=_order)).name if names else ""
        return Roster(self.fleet, self.members, self.authorities, self.said, name)

    def _promote(self) -> None:
        """Find those whom the authorities so far make one, all before any is heard: their order must not matter."""
        found: list[Authority] = []
        for sub in self.said:
            if sub in self.authorities:
                continue
            winner = self._winner(sub)
            if winner is None:
                found += self._revoked(sub)
            elif self._makes_authority(winner):
                self.members[sub] = self._member(winner)
                found.append(self._authority(winner, None))
        for authority in found:
            self._hear(authority)

    def _hear(self, authority: Authority) -> None:
        self.authorities[authority.peer] = authority
        if authority.exp <= self.now:
            return
        for statement in self.by_issuer.get(authority.peer, ()):
            if statement.sub not in {self.fleet, authority.peer} and authority.counts(statement):
                self.said.setdefault(statement.sub, []).append(statement)

    # -- one peer

    def _winner(self, sub: str) -> Statement | None:
        """The certificate that counts for a peer, by what the authorities found so far have said about it."""
        words = newest_by_issuer(self.said[sub]).values()
        revocations = [word for word in words if isinstance(word.claims, Revocation)]
        certificates = [word for word in words if isinstance(word.claims, Certificate)]
        # What was replaced stays replaced, also when what replaced it is revoked.
        counting = [
            word
            for word in certificates
            if not any(self._kills(revocation, word) for revocation in revocations)
            and not any(self._supersedes(other, word) for other in certificates)
        ]
        return max(counting, key=self._preference, default=None)

    def _preference(self, word: Statement) -> tuple[bool, int, int, int, str]:
        certificate = _certificate(word)
        rank = self.authorities[word.issuer].rank
        return (self._makes_authority(word), -rank, certificate.exp, certificate.iat, word.id)

    def _makes_authority(self, word: Statement) -> bool:
        return _certificate(word).role is Role.ADMIN and self._rank(word) <= LAST_RANK

    def _rank(self, word: Statement) -> int:
        return max(self.authorities[word.issuer].rank + 1, _certificate(word).rank)

    def _may_overrule(self, issuer: str, word: Statement) -> bool:
        """Whether it is the issuer's to speak about the subject of a certificate, if that is what makes its rank."""
        return not self._makes_authority(word) or issuer in self.authorities[word.issuer].path

    def _kills(self, revocation: Statement, word: Statement) -> bool:
        if not self._may_overrule(revocation.issuer, word):
            return False
        overrules = self.authorities[word.issuer].rank <= self.authorities[revocation.issuer].rank
        return not (overrules and _has_seen(word, revocation))

    def _supersedes(self, other: Statement, word: Statement) -> bool:
        if other is word or not self._may_overrule(other.issuer, word):
            return False
        return _has_seen(other, word) or (self._makes_authority(word) and not _has_seen(word, other))

    def _revoked(self, sub: str) -> list[Authority]:
        """A peer that was an authority until it was revoked, with which of its certificates still count."""
        was = [s for s in self.said[sub] if isinstance(s.claims, Certificate) and self._makes_authority(s)]
        word = max(newest_by_issuer(was).values(), key=self._preference, default=None)
        if word is None:
            return []
        against = [s for s in self.said[sub] if isinstance(s.claims, Revocation) and self._holds(s, word)]
        kept = [self._linked(sub, revocation) for revocation in newest_by_issuer(against).values()]
        return [self._authority(word, frozenset.intersection(*kept))] if kept else []

    def _holds(self, revocation: Statement, word: Statement) -> bool:
        """Whether a revocation came after an authority's certificate, as far as its issuer's numbers tell."""
        if revocation.issuer == word.issuer:
            return revocation.order > word.order
        return self._kills(revocation, word)

    def _linked(self, issuer: str, revocation: Statement) -> frozenset[str]:
        """The certificates of a revoked issuer that lead to the last statement which the revoker vouches for.

        Those that it withdrew itself until then are not among them.
        """
        claims = cast(Revocation, revocation.claims)
        by_id = {statement.id: statement for statement in self.by_issuer.get(issuer, ())}
        kept: set[str] = set()
        withdrawn: set[str] = set()
        at, last = claims.head, claims.vouched
        while (statement := by_id.get(at)) is not None and 0 < statement.claims.seq <= last:
            if isinstance(statement.claims, Revocation):
                withdrawn.add(statement.sub)
            elif statement.sub not in withdrawn:
                kept.add(at)
            at, last = statement.claims.prev, statement.claims.seq - 1
        return frozenset(kept)

    def _authority(self, word: Statement, vouched: frozenset[str] | None) -> Authority:
        issuer, certificate = self.authorities[word.issuer], _certificate(word)
        return Authority(
            word.sub,
            self._rank(word),
            (*issuer.path, word.sub),
            (word, *issuer.chain),
            min(certificate.exp, issuer.exp),
            certificate.limits.lowered(issuer.limits),
            certificate.since,
            vouched,
        )

    def _member(self, word: Statement) -> Member:
        issuer, certificate = self.authorities[word.issuer], _certificate(word)
        if issuer.rank and (certificate.exp > issuer.exp or issuer.limits != Limits()):
            certificate = msgspec.structs.replace(
                certificate,
                exp=int(min(certificate.exp, issuer.exp)),
                limits=certificate.limits.lowered(issuer.limits),
            )
        return Member(certificate, (word, *issuer.chain), issuer.path, self._rank(word))


def newest_by_issuer(statements: Iterable[Statement]) -> dict[str, Statement]:
    """Of some statements about one peer the last of each issuer."""
    words: dict[str, Statement] = {}
    for statement in statements:
        former = words.get(statement.issuer)
        if former is None or former.order < statement.order:
            words[statement.issuer] = statement
    return words


def _has_seen(word: Statement, other: Statement) -> bool:
    """The first release had no `seen`: among its statements the later one has seen the earlier."""
    if word.claims.seq == 0 and other.claims.seq == 0:
        return word.claims.iat > other.claims.iat
    return other.id in _certificate(word).seen


def _certificate(word: Statement) -> Certificate:
    return cast(Certificate, word.claims)


def _order(statement: Statement) -> tuple[int, int, bool, str]:
    return statement.order
