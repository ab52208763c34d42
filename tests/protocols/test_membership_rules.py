"""Each rule of membership by an example: the founder, ranks, numbers, revocations, wrong clocks, the first release."""

from __future__ import annotations

import math

import pytest

from tests.protocols.membership_histories import DAY, FOUNDER, START, History, certificate, fleet, revocation
from twinshare.protocols.access import Limits, Role
from twinshare.protocols.errors import Forbidden, InvalidRequest, PeerNotFound
from twinshare.protocols.membership.drafts import Drafts, founders_name
from twinshare.protocols.membership.explain import consequences, dated_ahead, explain
from twinshare.protocols.membership.rules import SKEW
from twinshare.protocols.membership.statement_set import StatementSet
from twinshare.protocols.membership.statements import (
    LIFETIME,
)


def heads(history: History, sub: str) -> tuple[str, ...]:
    return tuple(s.id for s in history.known.statements if s.sub == sub)


# -- rule 1: the founder is its key


def test_no_statement_about_the_founder_has_an_effect() -> None:
    history = fleet()
    before = history.roster
    seen = heads(history, "A1")
    for made in (
        certificate("A1", FOUNDER, Role.VIEWER, seq=9, seen=seen),
        certificate("A1", FOUNDER, Role.VIEWER, seq=9, iat=START + 250),
        revocation("A1", FOUNDER, seq=9),
        revocation("F", FOUNDER, seq=90),
        certificate("F", FOUNDER, Role.VIEWER, seq=90),
    ):
        history.known.add([made], history.now)
        assert history.roster.members == before.members
        assert history.roster.authorities == before.authorities
    assert history.roster.name == FOUNDER


def test_the_founder_names_itself_in_the_order_of_its_statements() -> None:
    history = fleet()
    last = history.known.last(FOUNDER)
    named = founders_name(history.known, "renamed", history.now)
    assert last is not None
    assert named is not None
    assert (named.claims.seq, named.claims.prev) == (last.claims.seq + 1, last.id)


# -- rule 3: rank


def test_the_ranks_of_a_fleet() -> None:
    ranks = {peer: authority.rank for peer, authority in fleet().roster.authorities.items()}
    assert ranks == {"F": 0, "A1": 1, "A2": 1, "B1": 2, "B2": 2}
    member = fleet().roster.members["C1"]
    assert (member.rank, member.certificate.role, member.path) == (3, Role.ADMIN, ("F", "A1", "B1"))
    with pytest.raises(Forbidden, match="last of 3"):
        fleet().certify("C1", "x1")


@pytest.mark.parametrize(("by", "sub"), [("A1", "A2"), ("A1", "B2"), ("B1", "A1"), ("B1", "B2"), ("B1", "A2")])
def test_an_admin_has_no_say_in_admins_of_other_chains_nor_above(by: str, sub: str) -> None:
    history = fleet()
    for act in (history.revoke, history.certify):
        with pytest.raises(Forbidden, match="is an admin by"):
            act(by, sub)
    before = history.roster.members[sub]
    seen = heads(history, sub)
    for made in (revocation(by, sub, seq=9), certificate(by, sub, Role.VIEWER, seq=9, seen=seen)):
        history.known.add([made], history.now)
        assert history.roster.members[sub] == before


@pytest.mark.parametrize("by", ["F", "A1", "A2", "B1", "B2"])
def test_any_admin_revokes_and_certifies_those_who_are_none(by: str) -> None:
    for sub in ("O1", "O2", "O3", "V1", "V2"):
        history = fleet()
        history.certify(by, sub, Role.VIEWER)
        assert history.roster.members[sub].issuer == by
        history.revoke(by, sub)
        assert sub not in history.roster.members
        history.certify(by, sub, Role.OPERATOR)
        assert history.roster.members[sub].certificate.role is Role.OPERATOR


def test_only_the_same_or_a_higher_rank_undoes_a_revocation() -> None:
    for by, sub in (("F", "V1"), ("A1", "V1")):
        history = fleet()
        history.revoke(by, sub)
        with pytest.raises(Forbidden, match=f"was revoked by {by}"):
            history.certify("B2", sub)
        history.known.add([certificate("B2", sub, seq=50, seen=heads(history, sub))], history.now)
        assert sub not in history.roster.members
        history.certify("A2" if by == "A1" else "F", sub)
        assert sub in history.roster.members


def test_a_child_never_exceeds_its_parent() -> None:
    history = fleet()
    history.certify("F", "A1", Role.ADMIN, Limits(vms=3, memory=4096))
    history.now += 10 * DAY
    history.certify("A1", "O2", Role.OPERATOR, Limits(vms=10, disk=5))
    got, parent = history.roster.members["O2"].certificate, history.roster.members["A1"].certificate
    assert (got.limits, got.exp) == (Limits(vms=3, memory=4096, disk=5), parent.exp)
    history.known.add([certificate("A1", "O2", iat=int(history.now), seq=50)], history.now)
    got = history.roster.members["O2"].certificate
    assert (got.limits, got.exp) == (Limits(vms=3, memory=4096), parent.exp)


def test_who_adopts_an_admin_does_not_raise_it() -> None:
    history = fleet()
    history.revoke("F", "A1")
    assert history.roster.members["B1"].issuer == "F"
    assert history.roster.authorities["B1"].rank == 2
    history = fleet()
    history.revoke("A1", "B1")
    assert history.roster.members["C1"].issuer == "A1"
    assert "C1" not in history.roster.authorities


def test_an_admin_whose_certificate_has_ended_has_no_say() -> None:
    history = fleet()
    history.now += 20 * DAY
    for sub in ("A2", "O1"):
        history.certify("F", sub, Role.ADMIN if sub == "A2" else Role.OPERATOR)
    history.now += 11 * DAY
    before = history.roster.members["O1"]
    late = [revocation("A1", "O1", seq=60, iat=START + DAY)]
    late.append(certificate("A1", "O1", seq=61, seen=heads(history, "O1"), iat=START + DAY))
    history.known.add(late, history.now)
    assert history.roster.members["O1"] == before
    with pytest.raises(Forbidden, match="no admin"):
        history.certify("A1", "O1")


# -- rule 4: what a revocation vouches for


def test_statements_after_the_one_vouched_for_are_void_also_backdated_ones() -> None:
    history = fleet()
    last = history.known.last("A1")
    assert last is not None
    drafts = history.drafts(FOUNDER)
    drafts.revoke("A1")
    history.take(drafts)
    # Not yet adopted, whom it had admitted are members by what is vouched for.
    assert history.roster.members["O2"].issuer == "A1"
    before = history.roster.members
    for made in (
        certificate("A1", "x1", seq=last.claims.seq + 1, prev=last.id),
        certificate("A1", "x1", seq=last.claims.seq, prev=last.claims.prev),
        certificate("A1", "x1", seq=0, iat=START - DAY),
        certificate("A1", "x1", seq=1, iat=START - DAY),
        revocation("A1", "O2", seq=1, iat=START - DAY),
        revocation("A1", "O1", seq=last.claims.seq + 1, prev=last.id),
    ):
        history.known.add([made], history.now)
        assert history.roster.members == before


def test_the_revocations_of_a_revoked_admin_are_void() -> None:
    history = fleet()
    history.revoke("A1", "O1")
    history.revoke("A1", "V1")
    history.revoke("F", "A1")
    assert {"O1", "V1"} <= set(history.roster.members)


def test_what_a_revoked_admin_had_itself_withdrawn_does_not_come_back() -> None:
    history = fleet()
    history.revoke("A1", "B1")
    history.certify("A2", "B1", Role.VIEWER)
    history.revoke("F", "A1")
    assert history.roster.members["B1"].certificate.role is Role.VIEWER


def test_who_is_revoked_again_gets_nothing_back_that_was_left_out() -> None:
    history = fleet()
    drafts = history.drafts(FOUNDER)
    drafts.revoke("A1", "")
    history.take(drafts)
    assert "O2" not in history.roster.members
    history.certify("F", "A1", Role.VIEWER)
    history.revoke("F", "A1")
    assert "O2" not in history.roster.members


def test_an_admin_that_comes_back_begins_anew() -> None:
    history = fleet()
    history.revoke("A1", "O1")
    history.known.add([certificate("A1", "x1", seq=9)], history.now)
    history.revoke("F", "A1")
    history.certify("F", "A1", Role.ADMIN)
    assert "O1" in history.roster.members
    history.certify("A1", "x2")
    history.revoke("A1", "O1")
    assert "O1" not in history.roster.members
    assert history.roster.members["x2"].issuer == "A1"


def test_nobody_becomes_an_authority_beside_what_a_higher_rank_says() -> None:
    """What a superior said is in force until it was seen: an admin that had not heard of it overrules nothing."""
    history = fleet()
    history.known.add(
        [certificate("A1", "x1", Role.ADMIN, seq=50), certificate("F", "x1", Role.VIEWER, seq=50)], history.now
    )
    got = history.roster.members["x1"]
    assert (got.issuer, got.certificate.role) == ("F", Role.VIEWER)
    history = fleet()
    history.certify("F", "x1", Role.VIEWER)
    history.certify("A1", "x1", Role.ADMIN)
    got = history.roster.members["x1"]
    assert (got.issuer, got.certificate.role) == ("A1", Role.ADMIN)


def test_a_void_statement_displaces_no_valid_one() -> None:
    history = fleet()
    history.revoke("F", "A1")
    before = history.roster.members
    for sub in ("O2", "B1", "V2"):
        history.known.add([certificate("A1", sub, Role.ADMIN, seq=99, seen=heads(history, sub))], history.now)
    assert history.roster.members == before


def test_what_was_replaced_stays_replaced_when_what_replaced_it_is_revoked() -> None:
    history = fleet()
    history.certify("F", "B1", Role.VIEWER)
    history.certify("A2", "B1", Role.OPERATOR)
    history.revoke("A2", "B1")
    assert "B1" not in history.roster.members


def test_two_statements_with_one_number_harm_nobody() -> None:
    history = fleet()
    last = history.known.last("A1")
    assert last is not None
    one, other = (certificate("A1", sub, seq=last.claims.seq + 1, prev=last.id) for sub in ("x1", "x2"))
    history.known.add([one, other], history.now)
    assert {"x1", "x2"} <= set(history.roster.members)
    seq = last.claims.seq + 2
    history.known.add([certificate("A1", "x1", seq=seq), revocation("A1", "x1", seq=seq)], history.now)
    assert "x1" not in history.roster.members


# -- rule 2: wrong clocks


def test_a_founder_whose_clock_was_wrong_is_an_admin_at_once_and_heals_what_it_signed() -> None:
    known, wrong = StatementSet(FOUNDER), START + 400 * DAY
    drafts = Drafts(known, FOUNDER, wrong)
    drafts.certify("A1", "A1", Role.ADMIN, Limits())
    known.add(drafts.made, wrong, own=True)
    assert "A1" in known.roster(wrong).members
    # The clock is right again.
    other = StatementSet(FOUNDER)
    assert other.add(drafts.made, START) == ([], [])
    assert "A1" not in known.roster(START).members
    assert explain(known, "A1", START).status == "held_back"
    [ahead] = dated_ahead(known, FOUNDER, START)
    drafts = Drafts(known, FOUNDER, START)
    drafts.certify(ahead.sub, "A1", Role.ADMIN, Limits())
    known.add(drafts.made, START, own=True)
    assert dated_ahead(known, FOUNDER, START) == []
    other.add(drafts.made, START)
    for healed in (known, other):
        assert healed.roster(START + 1).members["A1"].certificate.exp == START + LIFETIME
        assert healed.roster(wrong + DAY).members["A1"].certificate.exp == START + LIFETIME


def test_a_certificate_that_is_dated_ahead_displaces_nothing_until_its_time() -> None:
    history = fleet()
    ahead = certificate("A1", "O2", Role.VIEWER, seq=70, iat=START + SKEW + 1)
    history.known.add([ahead], history.now, own=True)
    roles = []
    for step in (0, 2, -2):
        history.now += step
        roles.append(history.roster.members["O2"].certificate.role)
    assert roles == [Role.OPERATOR, Role.VIEWER, Role.OPERATOR]


def test_a_clock_that_was_set_back_forgets_no_revocation() -> None:
    history = fleet()
    history.now += DAY
    history.revoke("F", "O1")
    history.now -= DAY
    assert "O1" not in history.roster.members


# -- in words


def test_a_revocation_lists_what_it_brings_about() -> None:
    history = fleet()
    history.revoke("A1", "V1")
    made, changes = consequences(history.known, FOUNDER, "A1", history.now, leave_out=["O2"])
    assert {change.id: change.becomes for change in changes} == {
        "A1": "revoked",
        "B1": "adopted",
        "C1": "stays",
        "V2": "stays",
        "O2": "out",
        "V1": "back",
    }
    history.known.add(made, history.now)
    assert "A1" not in history.roster.members
    assert {"B1", "C1", "V1", "V2"} <= set(history.roster.members)
    assert [s.claims.seq for s in made] == list(range(made[0].claims.seq, made[0].claims.seq + len(made)))


def test_who_cannot_be_revoked() -> None:
    history = fleet()
    with pytest.raises(Forbidden, match="founder"):
        history.revoke("A1", FOUNDER)
    with pytest.raises(InvalidRequest):
        history.revoke("A1", "A1")
    with pytest.raises(PeerNotFound):
        history.revoke("A1", "nobody")
    with pytest.raises(Forbidden, match="no admin"):
        history.revoke("O1", "O2")


def test_membership_is_explained() -> None:
    history = fleet()
    assert explain(history.known, FOUNDER, history.now).status == "founder"
    assert explain(history.known, "C1", history.now).path == ("F", "A1", "B1", "C1")
    assert explain(history.known, "nobody", history.now).status == "unknown"
    history.revoke("A1", "O1")
    said = explain(history.known, "O1", history.now)
    assert (said.status, "revoked by A1" in said.why, "rank 1 or above" in said.cure) == ("revoked", True, True)
    drafts = history.drafts(FOUNDER)
    drafts.revoke("A1", "")
    history.take(drafts)
    said = explain(history.known, "O2", history.now)
    assert (said.status, "A1 admitted it" in said.why) == ("revoked", True)
    history.now += 31 * DAY
    said = explain(history.known, "V1", history.now)
    assert said.status == "expired"
    assert "clock" in said.cure


def test_an_endless_end_is_the_founders_alone() -> None:
    ends = {peer for peer, authority in fleet().roster.authorities.items() if authority.exp == math.inf}
    assert ends == {FOUNDER}
