"""What an authority signs: certificates and revocations that have seen all that was said before, in its own order.

A draft is a statement without its token. Its ID does not depend on the signature, so several drafts can be linked, and
their effect looked at, before anything is signed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

import msgspec

from ..access import Limits, Role
from ..errors import Forbidden, InvalidRequest, PeerNotFound
from .rules import SKEW, Authority, Member, Roster, newest_by_issuer
from .statement_set import StatementSet
from .statements import LIFETIME, MAX_SEEN, RENEW_BEFORE, Certificate, Revocation, Statement, statement_id


class Drafts:
    """Statements of `peer` to be signed now, each made in the knowledge of the ones before."""

    def __init__(self, known: StatementSet, peer: str, now: float) -> None:
        self._known, self._peer, self._now = known.copy(), peer, now
        self.made: list[Statement] = []

    @property
    def roster(self) -> Roster:
        """The members as they will be."""
        return self._known.roster(self._now)

    def certify(self, sub: str, name: str, role: Role, limits: Limits, rank: int = 0) -> Statement:
        """Make `sub` a member of at least `rank`, or change its certificate. Raises: Forbidden, InvalidRequest."""
        roster = self.roster
        me = require_authority(roster, self._peer, self._now)
        standing = roster.authorities.get(sub)
        if standing and standing.current and role is not Role.ADMIN:
            self.revoke_with_adoption(sub)
            roster, standing = self.roster, None
        _require_say(roster, me, sub)
        last, mine = self._known.last(sub), newest_by_issuer(roster.said.get(sub, ()))
        if standing and standing.current:
            since = roster.members[sub].certificate.since
        else:
            since = last.claims.seq if last else -1
        seq, prev = self._link()
        return self._add(
            Certificate(
                fleet=self._known.fleet,
                sub=sub,
                name=name,
                role=role,
                iat=int(self._now),
                exp=int(min(self._now + LIFETIME, me.exp)),
                serial=secrets.token_hex(8),
                limits=limits.lowered(me.limits),
                issuer=self._peer,
                rank=rank if role is Role.ADMIN else 0,
                since=since,
                seen=_seen(mine, me),
                seq=seq,
                prev=prev,
            )
        )

    def revoke(self, sub: str, head: str | None = None) -> Statement:
        """Put `sub` out. `head` is the ID of the last statement of `sub` that is vouched for, empty for none.

        None vouches for all that is known of an admin. Raises: Forbidden, InvalidRequest, PeerNotFound.
        """
        roster = self.roster
        me = require_authority(roster, self._peer, self._now)
        if sub not in {roster.fleet, self._peer} and sub not in roster.said:
            raise PeerNotFound(f"{sub} is no member of this fleet", peer=sub)
        _require_say(roster, me, sub, revoking=True)
        standing = roster.authorities.get(sub)
        if head is None:
            last = self._known.last(sub) if standing and standing.current else None
        else:
            last = next((s for s in self._known.of(sub) if s.id == head), None)
        seq, prev = self._link()
        return self._add(
            Revocation(
                fleet=self._known.fleet,
                sub=sub,
                by=self._peer,
                iat=int(self._now),
                number=seq,
                seq=seq,
                prev=prev,
                vouched=last.claims.seq if last else 0,
                head=last.id if last else "",
            )
        )

    def revoke_with_adoption(self, sub: str, leave_out: Collection[str] = (), head: str | None = None) -> None:
        """Put `sub` out, and sign anew for those whom it had admitted, but for `leave_out`, who are put out too.

        With `head` only those whom it had admitted up to that statement are members on.
        """
        admitted = self._admitted_by(sub) if head is None else {}
        self.revoke(sub, head)
        for peer, member in sorted((admitted | self._admitted_by(sub)).items()):
            certificate = member.certificate
            if peer in leave_out:
                self.revoke(peer, "")
            elif certificate.exp > self._now:
                self.certify(peer, certificate.name, certificate.role, certificate.limits, member.rank)

    def _admitted_by(self, issuer: str) -> dict[str, Member]:
        return {sub: m for sub, m in self.roster.members.items() if m.issuer == issuer and sub != self._peer}

    def _link(self) -> tuple[int, str]:
        last, own = self._known.last(self._peer), self.roster.members.get(self._peer)
        seq = max(last.claims.seq if last else 0, own.certificate.since if own else 0) + 1
        return seq, last.id if last else ""

    def _add(self, claims: Certificate | Revocation) -> Statement:
        statement = Statement(self._peer, claims, statement_id(self._peer, msgspec.json.encode(claims)), "")
        self._known.add([statement], self._now, own=True)
        self.made.append(statement)
        return statement


def founders_name(known: StatementSet, name: str, now: float) -> Statement | None:
    """How the founder's node is called, if that is not said yet.

    It has the form of a certificate, because the first release knows the founder by one, and wants it renewed.
    """
    founder, last = known.fleet, known.last(known.fleet)
    said = [s for s in known.of(founder) if s.sub == founder]
    newest = max(said, key=lambda s: s.order).claims if said else None
    known_so = isinstance(newest, Certificate) and newest.name == name and newest.exp - now >= RENEW_BEFORE
    if newest and known_so and newest.iat <= now + SKEW:
        return None
    claims = Certificate(
        fleet=founder,
        sub=founder,
        name=name,
        role=Role.ADMIN,
        iat=int(now),
        exp=int(now) + LIFETIME,
        serial=secrets.token_hex(8),
        issuer=founder,
        seq=(last.claims.seq if last else 0) + 1,
        prev=last.id if last else "",
    )
    return Statement(founder, claims, statement_id(founder, msgspec.json.encode(claims)), "")


def require_authority(roster: Roster, peer: str, now: float) -> Authority:
    """The rank that lets a peer sign for others. Raises: Forbidden."""
    authority, member = roster.authorities.get(peer), roster.members.get(peer)
    if authority and authority.current and authority.exp > now:
        return authority
    if member and member.certificate.role is Role.ADMIN and member.certificate.exp > now:
        raise Forbidden("this node's certificate is the last of 3 in its chain: ask another admin")
    raise Forbidden("this node is no admin of its fleet: it has no say in who belongs to it", role_needed="admin")


def _require_say(roster: Roster, me: Authority, sub: str, *, revoking: bool = False) -> None:
    if sub == roster.fleet:
        raise Forbidden("the founder of the fleet is a member by its key: nobody can change that")
    if sub == me.peer:
        raise InvalidRequest("a node has no say in its own membership; it can leave the fleet")
    standing = roster.authorities.get(sub)
    if standing and standing.current and me.peer not in standing.path:
        raise Forbidden(f"{sub} is an admin by {standing.path[-2]}: only that node and those above it have a say in it")
    if revoking:
        return
    for issuer, word in newest_by_issuer(roster.said.get(sub, ())).items():
        if isinstance(word.claims, Revocation) and roster.authorities[issuer].rank < me.rank:
            raise Forbidden(f"{sub} was revoked by {issuer}: only that node or one of its rank or above can undo it")


def _seen(words: dict[str, Statement], me: Authority) -> tuple[str, ...]:
    """Raises: Forbidden when more is to be overruled than one statement can name."""
    others = [word.id for issuer, word in sorted(words.items()) if issuer != me.peer]
    if len(others) > MAX_SEEN:
        raise Forbidden(f"{len(others)} admins have had their say in this member: revoke those who had no reason to")
    return tuple(others)
