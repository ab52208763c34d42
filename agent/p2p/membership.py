"""Who belongs to our fleet, as this node knows it: its members' certificates, and revocations. All of it is verified.

Reads (`valid_certificate`, `gate`) are answered from memory; a change is stored before it takes effect.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import msgspec
import structlog

from ...protocols.access import Limits, Role
from ...protocols.errors import Conflict, Forbidden, InvalidRequest, PeerMisbehaved, PeerNotFound
from ...protocols.membership import (
    LIFETIME,
    MAX_CHAIN,
    RENEW_BEFORE,
    SKEW,
    Certificate,
    Chain,
    HeardRevocation,
    Revocation,
    SignedRevocation,
    check_chain,
    open_chain,
    open_revocation,
    voided_by,
)
from ...protocols.mesh import MAX_UPDATE_ITEMS, GossipUpdate
from .host import PeerId
from .signing import Signer, open_token
from .store import KeyValueStore

log = structlog.get_logger(__name__)
MAX_MEMBERS = 4096
MAX_REVOCATIONS = 4096
Now = Callable[[], float]


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What this node's own configuration says of a peer; it can only lower what the certificate allows."""

    deny: bool = False
    role: Role | None = None
    limits: Limits = Limits()


_NO_OVERRIDE = Override()


@dataclass(slots=True)
class _Member:
    """A chain whose signatures are good. `void` says that a certificate in it was revoked."""

    chain: Chain
    opened: tuple[Certificate, ...]
    void: bool = False

    @property
    def certificate(self) -> Certificate:
        return self.opened[0]


class Membership:
    """Made by `open_membership`. Times are seconds of the epoch, from `now`."""

    def __init__(
        self, store: KeyValueStore, signer: Signer, name: str, overrides: Mapping[PeerId, Override], now: Now
    ) -> None:
        self._store, self._signer, self._overrides, self._now = store, signer, overrides, now
        self.name = name
        self.peer_id = signer.peer_id
        self.fleet = ""
        self._members: dict[PeerId, _Member] = {}
        self._revocations: dict[str, tuple[SignedRevocation, HeardRevocation]] = {}
        self._voided: dict[PeerId, int] = {}

    # -- what is asked

    def valid_certificate(self, peer_id: PeerId) -> Certificate | None:
        """The certificate of a member with a valid certificate; None for everybody else. Overrides lower it."""
        member = self._members.get(peer_id)
        override = self._overrides.get(peer_id, _NO_OVERRIDE)
        if member is None or member.void or override.deny:
            return None
        certificate = member.certificate
        if not certificate.iat - SKEW <= self._now() < certificate.exp:
            return None
        if override is _NO_OVERRIDE:
            return certificate
        role = certificate.role if override.role is None else certificate.role.at_most(override.role)
        return msgspec.structs.replace(certificate, role=role, limits=certificate.limits.lowered(override.limits))

    def denies(self, peer_id: PeerId) -> bool:
        """Whether our own configuration shuts a peer out."""
        return self._overrides.get(peer_id, _NO_OVERRIDE).deny

    def known(self, peer_id: PeerId) -> Certificate | None:
        """The certificate of anybody who is or was a member, good or not."""
        member = self._members.get(peer_id)
        return member.certificate if member else None

    @property
    def peers(self) -> list[Certificate]:
        """The others whose certificates are not void, expired ones too: they may be renewed."""
        return [m.certificate for m in self._members.values() if not m.void and m.certificate.sub != self.peer_id]

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

    def everything(self) -> Iterator[GossipUpdate]:
        """All certificates and revocations, in pieces of a bearable size."""
        chains = (member.chain for member in list(self._members.values()) if not member.void)
        revocations = (signed for signed, _ in list(self._revocations.values()))
        while news := GossipUpdate(
            members=list(islice(chains, MAX_UPDATE_ITEMS)), revocations=list(islice(revocations, MAX_UPDATE_ITEMS))
        ):
            yield news

    # -- what changes

    async def learn(self, update: GossipUpdate) -> GossipUpdate:
        """Take in what verifies; returns the part that was new. What does not is dropped: a peer may know less."""
        revocations = [signed for signed in update.revocations if await self._keep_revocation(signed)]
        members = [chain for chain in update.members if await self._keep(chain)]
        return GossipUpdate(members=members, revocations=revocations)

    def require_issuer(self) -> Certificate:
        """Our own certificate, if it lets us make others. Raises: Forbidden."""
        own = self.valid_certificate(self.peer_id)
        if own is None or own.role is not Role.ADMIN:
            raise Forbidden("this node is no admin of its fleet: it cannot let others in", role_needed="admin")
        if self.peer_id != self.fleet and len(self._members[self.peer_id].chain) >= MAX_CHAIN:
            raise Forbidden(f"this node's certificate is the last of {MAX_CHAIN} in its chain: ask another admin")
        return own

    async def issue(self, sub: PeerId, name: str, role: Role, limits: Limits) -> Chain:
        """Make `sub` a member, or renew it. Raises: Forbidden when our own certificate does not allow it."""
        parent = self.require_issuer()
        chain = self._members[self.peer_id].chain
        is_founder = self.peer_id == self.fleet
        now, former = int(self._now()), self.known(sub)
        certificate = Certificate(
            fleet=self.fleet,
            sub=sub,
            name=name,
            role=role,
            # Later than a revocation that it outlives, and than the certificate whose place it takes.
            iat=max(now, self._voided.get(sub, -1) + 1, former.iat + 1 if former else 0),
            exp=now + LIFETIME if is_founder else min(now + LIFETIME, parent.exp),
            serial=secrets.token_hex(8),
            limits=limits if is_founder else limits.lowered(parent.limits),
        )
        issued: Chain = (self._signer.sign(msgspec.json.encode(certificate)), *(() if is_founder else chain))
        await self._keep(issued)
        return issued

    async def renew(self, sub: PeerId) -> Chain:
        """Issue a later certificate for a member. Raises: Forbidden, Conflict when it would expire no later."""
        member = self._members.get(sub)
        if member is None or self.valid_certificate(sub) is None:
            raise Forbidden(f"{sub} is no member with a valid certificate")
        own = self.known(self.peer_id)
        if self.peer_id != self.fleet and (own is None or own.exp <= member.certificate.exp + 3600):
            raise Conflict("this node's own certificate ends no later")
        old = member.certificate
        return await self.issue(sub, old.name, old.role, old.limits)

    async def revoke(self, peer_id: PeerId) -> GossipUpdate:
        """Put a member out, but not those whom it had let in: they get certificates of ours.

        Returns what the others must learn. Raises: PeerNotFound, Forbidden, InvalidRequest for this node itself.
        """
        if peer_id not in self._members:
            raise PeerNotFound(f"{peer_id} is no member of this fleet", peer=peer_id)
        own = self.valid_certificate(self.peer_id)
        if own is None or own.role is not Role.ADMIN:
            raise Forbidden("this node is no admin of its fleet: it cannot put others out", role_needed="admin")
        if peer_id == self.fleet:
            raise Forbidden("the founder of the fleet cannot be put out")
        if peer_id == self.peer_id:
            raise InvalidRequest("a node cannot put itself out; another admin can")
        signed = self._sign_revocation(peer_id)
        children = [m.certificate for m in self._members.values() if not m.void and peer_id in _issuers(m)]
        await self._keep_revocation(signed)
        chains = [await self.issue(c.sub, c.name, c.role, c.limits) for c in children]
        return GossipUpdate(members=chains, revocations=[signed])

    def _sign_revocation(self, peer_id: PeerId) -> SignedRevocation:
        mine = [h.revocation.number for _, h in self._revocations.values() if h.revocation.by == self.peer_id]
        revocation = Revocation(
            fleet=self.fleet,
            sub=peer_id,
            by=self.peer_id,
            iat=max(int(self._now()), self._members[peer_id].certificate.iat),
            number=max(mine, default=0) + 1,
        )
        chain = () if self.peer_id == self.fleet else self._members[self.peer_id].chain
        return SignedRevocation(token=self._signer.sign(msgspec.json.encode(revocation)), chain=chain)

    async def adopt(self, fleet: str, chain: Chain, issuer: PeerId) -> None:
        """Leave our fleet for another, of which `chain` makes us a member. Raises: PeerMisbehaved."""
        try:
            opened = open_chain(chain, fleet, open_token)
            check_chain(opened, self._now(), {})
        except Forbidden as error:
            raise PeerMisbehaved(f"the certificate that we were given is no good: {error.message}") from None
        if opened[0].sub != self.peer_id or issuer != (opened[1].sub if opened[1:] else fleet):
            raise PeerMisbehaved("the certificate that we were given is not ours, or not the inviter's")
        for kind, keys in (("member", list(self._members)), ("revocation", list(self._revocations))):
            for key in keys:
                await self._store.drop(kind, key)
        self._members.clear()
        self._revocations.clear()
        self._voided.clear()
        await self._store.put("fleet", "name", fleet.encode())
        self.fleet = fleet
        await self._keep(chain)

    # -- within

    async def load(self) -> None:
        """Read the store; found a fleet of our own if there is none."""
        self.fleet = (await self._store.load("fleet")).get("name", b"").decode()
        for packed in (await self._store.load("revocation")).values():
            self._take_revocation(msgspec.msgpack.decode(packed, type=SignedRevocation))
        for packed in (await self._store.load("member")).values():
            self._take_chain(msgspec.msgpack.decode(packed, type=Chain))
        if not self.fleet:
            await self._store.put("fleet", "name", self.peer_id.encode())
            self.fleet = self.peer_id
        if self.fleet == self.peer_id:
            await self.refound()

    async def refound(self) -> Chain | None:
        """As the founder, make or renew our own certificate, when it is time; tells the new one."""
        if self.known(self.peer_id) is not None and not self.renewable:
            return None
        now = int(self._now())
        certificate = Certificate(
            fleet=self.fleet,
            sub=self.peer_id,
            name=self.name,
            role=Role.ADMIN,
            iat=now,
            exp=now + LIFETIME,
            serial=secrets.token_hex(8),
        )
        chain = (self._signer.sign(msgspec.json.encode(certificate)),)
        await self._keep(chain)
        return chain

    async def _keep(self, chain: Chain) -> bool:
        """Take a chain and put it on the store; whether it was good and new."""
        sub = self._take_chain(chain)
        if sub is not None:
            await self._store.put("member", sub, msgspec.msgpack.encode(chain))
        return sub is not None

    def _take_chain(self, chain: Chain) -> PeerId | None:
        try:
            member = _Member(chain, open_chain(chain, self.fleet, open_token))
        except Forbidden as error:
            log.debug("a certificate is not taken", why=error.message)
            return None
        certificate = member.certificate
        former = self._members.get(certificate.sub)
        if former and (former.certificate.iat, former.certificate.serial) >= (certificate.iat, certificate.serial):
            return None
        if former is None and len(self._members) >= MAX_MEMBERS:
            return None
        self._judge(member)
        self._members[certificate.sub] = member
        return certificate.sub

    async def _keep_revocation(self, signed: SignedRevocation) -> bool:
        key = self._take_revocation(signed)
        if key is not None:
            await self._store.put("revocation", key, msgspec.msgpack.encode(signed))
        return key is not None

    def _take_revocation(self, signed: SignedRevocation) -> str | None:
        try:
            heard = open_revocation(signed, self.fleet, open_token)
        except Forbidden as error:
            log.debug("a revocation is not taken", why=error.message)
            return None
        key = f"{heard.revocation.by}/{heard.revocation.number}"
        if key in self._revocations or len(self._revocations) >= MAX_REVOCATIONS:
            return None
        self._revocations[key] = (signed, heard)
        self._voided = voided_by(heard for _, heard in self._revocations.values())
        for member in self._members.values():
            self._judge(member)
        return key

    def _judge(self, member: _Member) -> None:
        member.void = any(link.iat <= self._voided.get(link.sub, -1) for link in member.opened)


def _issuers(member: _Member) -> list[PeerId]:
    return [link.sub for link in member.opened[1:]]


async def open_membership(
    store: KeyValueStore, signer: Signer, name: str, overrides: Mapping[PeerId, Override], now: Now
) -> Membership:
    """What the store knows; a node that knows nothing founds a fleet of its own."""
    membership = Membership(store, signer, name, overrides, now)
    await membership.load()
    return membership
