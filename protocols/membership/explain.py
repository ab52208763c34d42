"""In words: who admitted a member, why somebody is out, what heals it, and what a revocation brings about."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import msgspec

from ..peer import RevocationEffect
from .drafts import Drafts
from .rules import SKEW, Roster, newest_by_issuer
from .statement_set import StatementSet
from .statements import Certificate, Revocation, Statement


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: founder, member, expired, revoked, held_back or unknown. `path`: peer IDs from the founder down."""

    status: str
    path: tuple[str, ...] = ()
    why: str
    cure: str = ""


def explain(known: StatementSet, peer: str, now: float) -> Explanation:
    """Why a peer is a member, or is none."""
    roster = known.roster(now)
    if peer == known.fleet:
        return Explanation(status="founder", path=(peer,), why="It has founded the fleet: its key is the fleet.")
    if (member := roster.members.get(peer)) is None:
        return _why_out(known, roster, peer, now)
    path = (*member.path, peer)
    admitted = f"admitted by {member.issuer}" + ("" if member.rank == 1 else f" (path {' > '.join(member.path)})")
    if member.certificate.exp > now:
        return Explanation(status="member", path=path, why=f"{admitted}, until {_date(member.certificate.exp)}")
    return _expired(admitted, member.certificate.exp, path, now)


def _expired(admitted: str, end: float, path: tuple[str, ...], now: float) -> Explanation:
    return Explanation(
        status="expired",
        path=path,
        why=f"{admitted}; that ended on {_date(end)}, and this node's clock says {_date(now)}",
        cure="If a clock is wrong, set it right. Else an admin invites the node again.",
    )


def _why_out(known: StatementSet, roster: Roster, peer: str, now: float) -> Explanation:
    words = newest_by_issuer(roster.said.get(peer, ()))
    revokers = [issuer for issuer, word in words.items() if isinstance(word.claims, Revocation)]
    if revokers:
        by = min(revokers, key=lambda issuer: (roster.authorities[issuer].rank, issuer))
        rank = roster.authorities[by].rank
        who = "the founder" if rank == 0 else f"{by}, or an admin of rank {rank} or above,"
        return Explanation(
            status="revoked",
            why=f"revoked by {by} on {_date(words[by].claims.iat)}",
            cure=f"To let it in again {who} makes a new ticket.",
        )
    unheard = [s for s in known.statements if s.sub == peer and isinstance(s.claims, Certificate)]
    if ahead := [s for s in unheard if s.claims.iat > now + SKEW]:
        return _held_back(max(ahead, key=lambda s: s.order), now)
    if unheard:
        last = max(unheard, key=lambda s: s.claims.iat)
        by, issuer = last.issuer, roster.authorities.get(last.issuer)
        if issuer and issuer.exp <= now:
            return _expired(f"admitted by {by}", issuer.exp, (), now)
        return Explanation(
            status="revoked",
            why=f"{by} admitted it, which was revoked itself or never had the right to",
            cure="An admin invites the node again.",
        )
    return Explanation(status="unknown", why="No certificate for it is known here.", cure="An admin invites the node.")


def _held_back(statement: Statement, now: float) -> Explanation:
    days = (statement.claims.iat - now) / 86400
    return Explanation(
        status="held_back",
        why=f"its certificate by {statement.issuer} is dated {days:.1f} days ahead of this node's clock",
        cure="Set right the clock that is wrong; the issuer then signs anew by itself.",
    )


def consequences(
    known: StatementSet, by: str, peer: str, now: float, leave_out: Collection[str] = (), head: str | None = None
) -> tuple[list[Statement], list[RevocationEffect]]:
    """What `by` has to sign to revoke `peer`, and what that brings about. Raises: Forbidden, PeerNotFound."""
    drafts = Drafts(known, by, now)
    drafts.revoke_with_adoption(peer, leave_out, head)
    before, after = known.roster(now), drafts.roster
    changes = [_change(before, after, sub, peer, by) for sub in sorted({*before.members, *after.members})]
    return drafts.made, [change for change in changes if change is not None]


def _change(before: Roster, after: Roster, sub: str, revoked: str, by: str) -> RevocationEffect | None:
    was, will = before.members.get(sub), after.members.get(sub)
    certificate = (will or was).certificate  # type: ignore[union-attr]  # one of both has it
    if will is None:
        becomes = "revoked" if sub == revoked else "out"
    elif was is None:
        becomes = "back"
    elif was.issuer == revoked and will.issuer == by:
        becomes = "adopted"
    elif revoked in was.path:
        becomes = "stays"
    else:
        return None
    return RevocationEffect(id=sub, name=certificate.name, role=certificate.role, becomes=becomes)


def dated_ahead(known: StatementSet, issuer: str, now: float) -> list[Statement]:
    """The last statements of an issuer about each peer that its clock, wrong then, dated ahead of `now`."""
    by_sub: dict[str, Statement] = {}
    for statement in sorted(known.of(issuer), key=lambda s: s.order):
        by_sub[statement.sub] = statement
    return [s for s in by_sub.values() if s.claims.iat > now + SKEW]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, 2.0**36), UTC).strftime("%Y-%m-%d %H:%M UTC")
