"""Who belongs to a fleet: certificates, their chains, and revocations. Signatures are checked by who calls us.

A fleet is its founder's key, and its name is the founder's peer ID. A certificate is signed by the founder, or by an
admin whose own certificate follows it in the chain. Everything here can be verified by any member, offline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ..access import Limits, Role
from ..errors import Forbidden

MAX_CHAIN = 3
LIFETIME = 30 * 86400
RENEW_BEFORE = 20 * 86400
"""Seconds before its end when a certificate is worth renewing."""
SKEW = 300
"""Seconds that clocks may differ."""
MAX_TOKEN = 4096

Token = Annotated[str, Meta(max_length=MAX_TOKEN)]
Chain = Annotated[tuple[Token, ...], Meta(min_length=1, max_length=MAX_CHAIN)]
"""Certificates as compact JWS: a member's own first, then its issuer's, up to one that the founder signed."""
Open = Callable[[str, str], bytes]
"""Gives the payload of a JWS if the peer named second has signed it. Raises: ValueError."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """That `sub` belongs to `fleet`. Times in seconds of the epoch."""

    fleet: str
    sub: str
    name: str
    role: Role
    iat: int
    exp: int
    serial: str
    limits: Limits = Limits()


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """That certificates of `sub` made at or before `iat` are void. `number` counts the signer's revocations."""

    fleet: str
    sub: str
    by: str
    iat: int
    number: int


class SignedRevocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A revocation as a JWS, and the chain of who signed it (empty for the founder)."""

    token: Token
    chain: Annotated[tuple[Token, ...], Meta(max_length=MAX_CHAIN)] = ()


def open_chain(chain: Iterable[str], fleet: str, open_token: Open) -> tuple[Certificate, ...]:
    """The certificates of a chain in which every signature is good and none exceeds its parent; the time is left out.

    Raises: Forbidden, saying which certificate is not good and why.
    """
    tokens = tuple(chain)
    if not 1 <= len(tokens) <= MAX_CHAIN:
        raise Forbidden(f"a chain of {len(tokens)} certificates; 1 to {MAX_CHAIN} are allowed")
    opened: list[Certificate] = []
    for token in reversed(tokens):
        certificate = _open_certificate(token, opened[-1].sub if opened else fleet, open_token)
        if certificate.fleet != fleet:
            raise Forbidden(f"the certificate of {certificate.sub} is of another fleet")
        if opened:
            _check_child(certificate, opened[-1])
        opened.append(certificate)
    return tuple(reversed(opened))


def check_chain(chain: Iterable[Certificate], now: float, voided: Mapping[str, int]) -> None:
    """That every certificate of an opened chain holds now. `voided` says for each peer until when its are void.

    Raises: Forbidden, saying which certificate is not good and why.
    """
    for certificate in chain:
        who = f"the certificate of {certificate.sub}"
        if certificate.iat > now + SKEW:
            raise Forbidden(f"{who} begins in the future; are the clocks right?")
        if certificate.exp <= now:
            raise Forbidden(f"{who} has expired; an admin of the fleet must renew it or invite the node again")
        if certificate.iat <= voided.get(certificate.sub, -1):
            raise Forbidden(f"{who} was revoked")


def _open_certificate(token: str, signer: str, open_token: Open) -> Certificate:
    try:
        return msgspec.json.decode(open_token(token, signer), type=Certificate)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Forbidden(f"a certificate is not good: {error}") from None


def _check_child(child: Certificate, parent: Certificate) -> None:
    who = f"the certificate of {child.sub}"
    if parent.role is not Role.ADMIN:
        raise Forbidden(f"{who} was issued by {parent.sub}, which is no admin")
    if child.exp > parent.exp or not child.limits.within(parent.limits):
        raise Forbidden(f"{who} allows more than the certificate of its issuer {parent.sub}")


class HeardRevocation(NamedTuple):
    """A revocation whose signatures are good, and the certificates behind it; behind the founder's there is none."""

    revocation: Revocation
    authority: tuple[Certificate, ...]


def open_revocation(signed: SignedRevocation, fleet: str, open_token: Open) -> HeardRevocation:
    """A revocation that the founder or an admin has signed; nobody revokes the founder. Raises: Forbidden."""
    authority = open_chain(signed.chain, fleet, open_token) if signed.chain else ()
    signer = authority[0].sub if authority else fleet
    try:
        revocation = msgspec.json.decode(open_token(signed.token, signer), type=Revocation)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Forbidden(f"a revocation is not good: {error}") from None
    if revocation.fleet != fleet or revocation.by != signer or revocation.sub == fleet:
        raise Forbidden("a revocation is not good: it is not the signer's to make")
    if authority and authority[0].role is not Role.ADMIN:
        raise Forbidden(f"a revocation is not good: {signer} is no admin")
    check_chain(authority, revocation.iat, {})
    return HeardRevocation(revocation, authority)


def voided_by(heard: Iterable[HeardRevocation]) -> dict[str, int]:
    """For each revoked peer the time until which its certificates are void.

    The order in which revocations arrive does not matter. One is void if a certificate behind it was.
    """
    voided: dict[str, int] = {}
    for revocation, authority in sorted(
        heard, key=lambda item: (item[0].iat, len(item[1]), item[0].by, item[0].number)
    ):
        if all(link.iat > voided.get(link.sub, -1) for link in authority):
            voided[revocation.sub] = max(revocation.iat, voided.get(revocation.sub, -1))
    return voided
