"""The statements that a node keeps: bounded for each issuer by itself, and the same whatever the order they came in.

Kept is what the founder signed, an admin of its, or an admin of theirs, whether or not they were
revoked since, for a revocation may turn out to be void. Whoever signs more than its share loses its own statements, the
oldest and those that it has itself replaced first, its revocations last. A share is never taken from another issuer's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from ..access import Role
from .rules import LAST_RANK, SKEW, Roster, evaluate
from .statements import Certificate, Revocation, Statement

SHARES = (4096, 1024, 128)
"""How many statements are kept of an issuer, by its rank; a statement that the issuer replaced counts for nothing."""
HISTORY = 64
"""How many of an issuer's last statements are kept even if it replaced them: they link its older ones to the newer."""
MAX_ADMINS = 32
"""How many admins of one admin can sign statements; more than these replace the oldest."""


class StatementSet:
    """The statements of one fleet. It takes verified statements; times are seconds of the epoch."""

    def __init__(self, fleet: str, statements: Iterable[Statement] = ()) -> None:
        self.fleet = fleet
        self._by_issuer: dict[str, dict[str, Statement]] = {}
        self._roster: Roster | None = None
        self._roster_from, self._roster_until = 0.0, 0.0
        self._insert(s for s in statements if s.claims.fleet == fleet)
        self._prune()

    def __contains__(self, statement_id: str) -> bool:
        return any(statement_id in held for held in self._by_issuer.values())

    @property
    def statements(self) -> list[Statement]:
        return [statement for held in self._by_issuer.values() for statement in held.values()]

    def of(self, issuer: str) -> Collection[Statement]:
        """What one issuer has signed, as far as it is kept."""
        return self._by_issuer.get(issuer, {}).values()

    def last(self, issuer: str) -> Statement | None:
        """The statement to which the issuer's next one is linked."""
        return max(self.of(issuer), key=lambda s: s.order, default=None)

    def add(
        self, statements: Iterable[Statement], now: float, *, own: bool = False
    ) -> tuple[list[Statement], list[Statement]]:
        """Take statements in; returns those that are kept and were new, and those that had to go for them.

        What is dated more than `SKEW` seconds ahead is left out, for its time may never come; `own` are the node's.
        """
        fresh = {
            s.id: s
            for s in statements
            if s.claims.fleet == self.fleet and (own or s.claims.iat <= now + SKEW) and not self._holds(s)
        }
        if not fresh:
            return [], []
        self._insert(fresh.values())
        dropped = self._prune()
        self._roster = None
        return [s for s in fresh.values() if self._holds(s)], [s for s in dropped if s.id not in fresh]

    def roster(self, now: float) -> Roster:
        """The members by what is kept."""
        if self._roster is None or not self._roster_from <= now < self._roster_until:
            self._roster = evaluate(self.fleet, self.statements, now)
            times: list[float] = [s.claims.iat - SKEW for s in self.statements]
            times += [authority.exp for authority in self._roster.authorities.values()]
            self._roster_from = max((t for t in times if t <= now), default=-math.inf)
            self._roster_until = min((t for t in times if t > now), default=math.inf)
        return self._roster

    def chain(self, issuer: str, roster: Roster) -> tuple[Statement, ...]:
        """Certificates that lead from an issuer to the founder, also of one that is no authority any more."""
        if (authority := roster.authorities.get(issuer)) is not None:
            return authority.chain
        by_rank: dict[str, tuple[Statement, ...]] = {self.fleet: ()}
        for _ in range(LAST_RANK):
            for signer in list(by_rank):
                for sub, statement in _admins(self.of(signer)).items():
                    by_rank.setdefault(sub, (statement, *by_rank[signer]))
        return by_rank.get(issuer, ())

    def copy(self) -> StatementSet:
        """A set of its own with the same statements, to see what others would change."""
        other = StatementSet(self.fleet)
        other._by_issuer = {issuer: dict(held) for issuer, held in self._by_issuer.items()}
        return other

    def _holds(self, statement: Statement) -> bool:
        return statement.id in self._by_issuer.get(statement.issuer, {})

    def _insert(self, statements: Iterable[Statement]) -> None:
        for statement in statements:
            self._by_issuer.setdefault(statement.issuer, {})[statement.id] = statement

    def _prune(self) -> list[Statement]:
        """Drop what is over a share, and what nobody with a certificate signed."""
        dropped: list[Statement] = []
        kept: dict[str, dict[str, Statement]] = {}
        issuers = [self.fleet]
        for rank in range(LAST_RANK + 1):
            for issuer in issuers:
                kept[issuer] = {s.id: s for s in within_share(self.of(issuer), SHARES[rank], HISTORY)}
            limit = SHARES[0] if rank == 0 else MAX_ADMINS
            certified = [sub for issuer in issuers for sub in list(_admins(kept[issuer].values()))[-limit:]]
            issuers = [sub for sub in dict.fromkeys(certified) if sub not in kept]
        for issuer, held in self._by_issuer.items():
            dropped += [s for s in held.values() if s.id not in kept.get(issuer, {})]
        self._by_issuer = {issuer: held for issuer, held in kept.items() if held}
        return dropped


def within_share(statements: Collection[Statement], share: int, history: int) -> list[Statement]:
    """What is kept of one issuer's statements. It is the same whether they are pruned at once or piece by piece."""
    if len(statements) <= history:
        return list(statements)
    by_order = sorted(statements, key=lambda s: s.order)
    newest: dict[tuple[str, type], Statement] = {(s.sub, type(s.claims)): s for s in by_order}
    live = sorted(newest.values(), key=lambda s: (isinstance(s.claims, Revocation), s.order))
    kept = {s.id: s for s in (*live[-share:], *by_order[-history:])}
    return list(kept.values())


def _admins(statements: Iterable[Statement]) -> dict[str, Statement]:
    """The newest certificate of each admin, by age."""
    certified = [s for s in statements if isinstance(s.claims, Certificate) and s.claims.role is Role.ADMIN]
    newest = {s.sub: s for s in sorted(certified, key=lambda s: s.order)}
    return dict(sorted(newest.items(), key=lambda item: item[1].order))
