"""The signed statements that membership is made of: certificates and revocations, each a compact JWS of one issuer.

A statement travels as a token that anybody can verify. `read_certificate` and `read_revocation` check what can be
checked of one statement alone; what a set of statements amounts to is decided in `rules`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from ..access import Limits, Role
from ..bounded.jws import read_jws_header
from ..errors import Forbidden
from ..tolerant import decode_json_tolerantly

MAX_TOKEN = 4096
LIFETIME = 30 * 86400
"""Seconds for which a certificate is valid at most."""
RENEW_BEFORE = 20 * 86400
"""Seconds before its end when a certificate is worth renewing."""
MAX_CHAIN = 3
MAX_SEEN = 24
MAX_NUMBER = 2**53

Token = Annotated[str, Meta(max_length=MAX_TOKEN)]
Chain = Annotated[tuple[Token, ...], Meta(min_length=1, max_length=MAX_CHAIN)]
"""Certificates: a member's own first, then its issuer's, up to one that the founder signed."""
PeerText = Annotated[str, Meta(min_length=1, max_length=128)]
StatementId = Annotated[str, Meta(max_length=43)]
"""SHA-256 of issuer and payload, base64url; empty where there is none."""
Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Verify = Callable[[str, str], bytes]
"""Gives the payload of a JWS if the peer named second has signed it. Raises: ValueError."""


_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_NOT_A_NAME = re.compile(r"local|12D3KooW.*", re.IGNORECASE)
MAX_LABEL = 63


def is_label(name: str) -> bool:
    """Whether a node may be called so: A-Z, a-z, 0-9, dots and hyphens, at most 63, no dot or hyphen at the ends."""
    return _LABEL.fullmatch(name) is not None


def means_another(name: str) -> bool:
    """Whether a reference to a node of this name may mean another one: `local` is who reads it, 12D3KooW… an ID."""
    return _NOT_A_NAME.fullmatch(name) is not None


def as_label(name: str) -> str:
    """The name with whatever a label cannot have replaced by hyphens, `node` where it may mean another node."""
    label = re.sub(r"[^A-Za-z0-9.-]", "-", name)[:MAX_LABEL].strip(".-")
    return "node" if not label or means_another(label) else label


class Certificate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """That `sub` belongs to `fleet`. Times in seconds of the epoch.

    `seq` counts the issuer's statements from 1, `prev` is the ID of the one before; a statement of the first release
    has neither, and counts as number 0.
    `seen`: the last statements about `sub` by other issuers, which this one overrules where its issuer may.
    `rank`: the subject has at least this rank; who adopts or renews an admin of another does not raise it.
    `since`: statements of `sub` up to this number count no more; -1 where there were none.
    """

    fleet: PeerText
    sub: PeerText
    name: Annotated[str, Meta(min_length=1, max_length=255)]
    role: Role
    iat: Number
    exp: Number
    serial: Annotated[str, Meta(max_length=64)] = ""
    limits: Limits = Limits()
    issuer: Annotated[str, Meta(max_length=128)] = ""
    seq: Number = 0
    prev: StatementId = ""
    rank: Annotated[int, Meta(ge=0, le=3)] = 0
    since: Annotated[int, Meta(ge=-1, le=MAX_NUMBER)] = -1
    seen: Annotated[tuple[StatementId, ...], Meta(max_length=MAX_SEEN)] = ()


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """That `sub` is out of `fleet`, and how far what it signed is still vouched for.

    Of the statements of `sub` its certificates up to `vouched`, whose ID is `head`, stay valid: those that are linked
    to `head` by `prev`. The first release wrote `number` alone, which counted the issuer's revocations.
    """

    fleet: PeerText
    sub: PeerText
    by: PeerText
    iat: Number
    number: Number
    seq: Number = 0
    prev: StatementId = ""
    vouched: Number = 0
    head: StatementId = ""


class SignedRevocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A revocation as a JWS, and the chain of its issuer (empty for the founder)."""

    token: Token
    chain: Annotated[tuple[Token, ...], Meta(max_length=MAX_CHAIN)] = ()


class Statement(msgspec.Struct, frozen=True):
    """A verified statement: `issuer` has signed `claims`, as `token` proves."""

    issuer: str
    claims: Certificate | Revocation
    id: str
    token: str

    @property
    def sub(self) -> str:
        return self.claims.sub

    @property
    def order(self) -> tuple[int, int, bool, str]:
        """Which of two statements of one issuer counts as the later one; of two with one number the revocation."""
        claims = self.claims
        return (claims.seq, 0 if claims.seq else claims.iat, isinstance(claims, Revocation), self.id)


def statement_id(issuer: str, payload: bytes) -> str:
    """The ID by which other statements refer to one."""
    digest = hashlib.sha256(issuer.encode() + b"\0" + payload).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class _Header(msgspec.Struct):
    kid: PeerText


def signer_of(token: str) -> str:
    """The peer ID that a token names as its signer, not verified. Raises: ValueError."""
    if len(token) > MAX_TOKEN:
        raise ValueError(f"a token of {len(token)} characters; {MAX_TOKEN} are allowed")
    try:
        return msgspec.json.decode(read_jws_header(token), type=_Header).kid
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"a token without a signer's ID: {error}") from None


def read_certificate(token: str, verify: Verify) -> Statement:
    """The certificate in a token. Raises: Forbidden, saying what is wrong with it."""
    statement = _read(token, verify, Certificate)
    certificate = statement.claims
    if not isinstance(certificate, Certificate) or not 0 < certificate.exp - certificate.iat <= LIFETIME:
        raise Forbidden(f"the certificate of {statement.sub} is valid for longer than {LIFETIME // 86400} days")
    if certificate.seq and not is_label(certificate.name):
        raise Forbidden(f"the certificate of {statement.sub} gives it a name that is no label")
    if certificate.seq and certificate.issuer != statement.issuer:
        raise Forbidden(f"the certificate of {statement.sub} names another issuer than its signer")
    if (certificate.sub == certificate.fleet) != (certificate.sub == statement.issuer):
        raise Forbidden("no certificate about the founder of a fleet is valid, nor one about its own issuer")
    return statement


def read_revocation(token: str, verify: Verify) -> Statement:
    """The revocation in a token. Raises: Forbidden, saying what is wrong with it."""
    statement = _read(token, verify, Revocation)
    revocation = statement.claims
    if not isinstance(revocation, Revocation) or revocation.by != statement.issuer:
        raise Forbidden(f"the revocation of {statement.sub} names another issuer than its signer")
    if revocation.sub in {revocation.fleet, statement.issuer}:
        raise Forbidden("nobody can revoke the founder of a fleet, nor itself")
    return statement


def _read(token: str, verify: Verify, kind: type[Certificate | Revocation]) -> Statement:
    try:
        issuer = signer_of(token)
        payload = verify(token, issuer)
        claims = decode_json_tolerantly(payload, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Forbidden(f"a {kind.__name__.lower()} is not valid: {error}") from None
    return Statement(issuer, claims, statement_id(issuer, payload), token)
