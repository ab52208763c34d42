"""What is read of one statement, and what statements of the first release, which have no numbers, amount to."""

from __future__ import annotations

import msgspec
import pytest

from tests.protocols.membership_histories import FOUNDER, START, History, certificate, revocation, sign
from twinshare.protocols.access import Role
from twinshare.protocols.errors import Forbidden
from twinshare.protocols.membership.statements import (
    LIFETIME,
    Certificate,
    Revocation,
    read_certificate,
    read_revocation,
    signer_of,
)


@pytest.mark.parametrize(
    ("issuer", "claims", "match"),
    [
        ("A1", certificate("A1", FOUNDER).claims, "founder"),
        ("A1", certificate("A1", "A1").claims, "founder"),
        ("A1", certificate("A2", "O1").claims, "another issuer"),
        ("A1", certificate("A1", "O1", exp=START + LIFETIME + 1).claims, "longer than 30 days"),
        ("A1", certificate("A1", "O1", exp=START).claims, "longer than 30 days"),
        ("A1", revocation("A1", FOUNDER).claims, "founder"),
        ("A1", revocation("A1", "A1").claims, "itself"),
        ("A1", revocation("A2", "O1").claims, "another issuer"),
    ],
)
def test_what_is_wrong_with_a_statement_alone_is_said(
    issuer: str, claims: Certificate | Revocation, match: str
) -> None:
    token = "eyJraWQiOiJBMSJ9.x.y"
    read = read_certificate if isinstance(claims, Certificate) else read_revocation
    with pytest.raises(Forbidden, match=match):
        read(token, lambda token, signer: msgspec.json.encode(claims))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "e30.x.y", "." * 4000, "e" * 5000, "eyJraWQiOiJBMSJ9.x.y"])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    def verify(token: str, signer: str) -> bytes:
        raise ValueError("not signed")

    for read in (read_certificate, read_revocation):
        with pytest.raises(Forbidden, match="is not valid"):
            read(token, verify)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "e30.x.y", "." * 4000, "e" * 5000])
def test_a_token_that_names_no_signer_is_verified_by_nobody(token: str) -> None:
    with pytest.raises(ValueError, match=r"without a signer's ID|characters"):
        signer_of(token)
    with pytest.raises(Forbidden, match="is not valid"):
        read_certificate(token, lambda token, signer: pytest.fail(f"verified by {signer!r}"))


def test_claims_that_a_later_version_adds_are_passed_over() -> None:
    claims = msgspec.to_builtins(certificate("A1", "O1").claims) | {"color": "blue"}
    read = read_certificate("eyJraWQiOiJBMSJ9.x.y", lambda token, signer: msgspec.json.encode(claims))
    assert read.claims == certificate("A1", "O1").claims


# -- the first release: no numbers


def first_release(issuer: str, sub: str, role: Role = Role.VIEWER, iat: int = START) -> Certificate:
    return Certificate(fleet=FOUNDER, sub=sub, name=sub, role=role, iat=iat, exp=iat + LIFETIME, serial="s")


def test_certificates_of_the_first_release_are_valid_until_their_issuer_is_revoked() -> None:
    history = History()
    for issuer, claims in (
        ("F", first_release("F", "A1", Role.ADMIN)),
        ("A1", first_release("A1", "O1")),
        ("A1", first_release("A1", "O2")),
        ("F", first_release("F", "F", Role.ADMIN)),
    ):
        history.known.add([sign(issuer, claims)], history.now)
    old = Revocation(fleet=FOUNDER, sub="O2", by="A1", iat=START, number=1)
    history.known.add([sign("A1", old)], history.now)
    assert set(history.roster.members) == {"A1", "O1"}
    history.known.add([sign("F", first_release("F", "O2", iat=START + 1))], history.now)
    assert "O2" in history.roster.members
    history.certify("F", "O2", Role.OPERATOR)
    assert history.roster.members["O2"].certificate.seq == 1
    drafts = history.drafts(FOUNDER)
    drafts.revoke("A1")
    history.take(drafts)
    assert set(history.roster.members) == {"O2"}


def test_a_revocation_of_an_admin_of_the_first_release_adopts_whom_it_had_admitted() -> None:
    history = History()
    history.known.add([sign("F", first_release("F", "A1", Role.ADMIN))], history.now)
    history.known.add([sign("A1", first_release("A1", "O1"))], history.now)
    history.revoke("F", "A1")
    assert set(history.roster.members) == {"O1"}
