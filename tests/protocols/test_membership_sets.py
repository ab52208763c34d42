"""The same members whatever the order of statements, with repetition and loss; what a set keeps of a flood."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocols.membership_histories import (
    FOUNDER,
    PEERS,
    START,
    SYBIL,
    attack,
    certificate,
    fleet,
    live_on,
    members,
    revocation,
)
from twinshare.protocols.access import Role
from twinshare.protocols.membership import statement_set as set_module
from twinshare.protocols.membership.statement_set import HISTORY, StatementSet, within_share
from twinshare.protocols.membership.statements import Statement

HISTORIES = 1000


def lived(seed: int) -> tuple[list[Statement], float]:
    """Honest acts and attacks of several adversaries."""
    rng = random.Random(seed)
    history = fleet()
    live_on(history, rng, 5)
    made = attack(history, rng, rng.sample([*PEERS, SYBIL], 3), 12)
    return [*history.known.statements, *made], history.now


@pytest.mark.parametrize("part", range(4))
def test_the_order_of_statements_and_their_repetition_change_nothing(part: int) -> None:
    for number in range(HISTORIES // 4):
        seed = part * HISTORIES + number
        statements, now = lived(seed)
        rng = random.Random(seed)
        expected = members(statements, now)
        for _ in range(3):
            mixed = [*statements, *rng.choices(statements, k=5)]
            rng.shuffle(mixed)
            assert members(list({s.id: s for s in mixed}.values()), now) == expected


def gossip(statements: list[Statement], now: float, rng: random.Random, *, loss: float) -> StatementSet:
    """A set that hears everything in pieces, in its own order, most of it more than once."""
    known = StatementSet(FOUNDER)
    for number in range(12):
        mixed = [s for s in statements if rng.random() >= loss or number == 11]
        rng.shuffle(mixed)
        for start in range(0, len(mixed), 7):
            known.add(mixed[start : start + 7], now)
    # What rests on a certificate that came last is delivered once more.
    for _ in range(3):
        known.add(statements, now)
    return known


def test_all_nodes_agree_once_each_has_heard_all() -> None:
    for seed in range(150):
        statements, now = lived(seed)
        nodes = [gossip(statements, now, random.Random(node), loss=0.3 * node) for node in range(3)]
        assert len({frozenset(s.id for s in node.statements) for node in nodes}) == 1
        assert all(node.roster(now).members == members(node.statements, now) for node in nodes)
        assert nodes[0].roster(now).members == members(statements, now)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_module, "SHARES", (40, 12, 6))
    monkeypatch.setattr(set_module, "HISTORY", 4)
    monkeypatch.setattr(set_module, "MAX_ADMINS", 3)


@pytest.mark.usefixtures("small")
def test_all_nodes_agree_also_when_admins_flood() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        history = fleet()
        flood = attack(history, rng, ["A1", "B1", "B2"], 80)
        flood += [certificate("A2", f"x{n}", Role.ADMIN, seq=n + 10) for n in range(8)]
        statements = [*history.known.statements, *flood]
        nodes = [gossip(statements, history.now, random.Random(node), loss=0.3 * node) for node in range(3)]
        assert len({frozenset(s.id for s in node.statements) for node in nodes}) == 1
        assert nodes[0].roster(history.now).members == nodes[2].roster(history.now).members


numbers = st.integers(0, 200)
said = st.tuples(numbers, st.sampled_from("abcdefgh"), st.booleans())


@given(st.lists(said, max_size=120), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_pruning_piece_by_piece_keeps_what_pruning_at_once_keeps(
    about: list[tuple[int, str, bool]], share: int, rng: random.Random
) -> None:
    statements = {
        s.id: s
        for seq, sub, revoked in about
        for s in [revocation("A1", sub, seq=seq) if revoked else certificate("A1", sub, seq=seq)]
    }
    at_once = {s.id for s in within_share(list(statements.values()), share, history=4)}
    kept: list[Statement] = []
    mixed = list(statements.values())
    rng.shuffle(mixed)
    while mixed:
        size = rng.randint(1, 9)
        kept, mixed = within_share([*kept, *mixed[:size]], share, history=4), mixed[size:]
    assert {s.id for s in kept} == at_once
    assert len(kept) <= share + 4


# -- floods


def test_a_flood_of_an_admin_costs_nobody_else_a_statement() -> None:
    history = fleet()
    history.revoke(FOUNDER, "O1")
    history.revoke("A2", "O2")
    # B1 is an admin by a certificate of A1, so its statements end with that one.
    others = {s.id for s in history.known.statements if s.issuer not in {"A1", "B1"}}
    before = history.roster.members
    for start in range(10, 6000, 500):
        seqs = range(start, start + 500)
        history.known.add([revocation("A1", f"x{seq}", seq=seq) for seq in seqs], history.now)
    assert others <= {s.id for s in history.known.statements}
    assert len(history.known.of("A1")) <= set_module.SHARES[1] + HISTORY
    # Its own members are lost, for their certificates were its oldest statements; all others are what they were.
    after = history.roster.members
    assert {peer: m for peer, m in before.items() if "A1" not in m.path} == {
        peer: m for peer, m in after.items() if "A1" not in m.path
    }
    history.revoke(FOUNDER, "A1")
    assert "A1" not in history.roster.members
    assert "O1" not in history.roster.members


@pytest.mark.usefixtures("small")
def test_whoever_signs_more_than_its_share_loses_its_oldest_certificates_and_revocations_last() -> None:
    history = fleet()
    history.revoke("A1", "O1")
    for number in range(30):
        history.certify("A1", f"x{number}")
    left = {peer for peer in history.roster.members if peer.startswith("x")}
    assert left == {f"x{number}" for number in range(19, 30)}
    assert "O1" not in history.roster.members
    history.revoke("F", "A1")
    assert left <= history.roster.members.keys()


@pytest.mark.usefixtures("small")
def test_statements_that_are_read_back_are_within_the_same_bounds() -> None:
    """What a version with larger shares had stored, say."""
    history = fleet()
    flood = [revocation("A1", f"x{seq}", seq=seq) for seq in range(10, 60)]
    stored = [*history.known.statements, *flood]
    history.known.add(flood, history.now)
    read = StatementSet(FOUNDER, stored)
    assert {s.id for s in read.statements} == {s.id for s in history.known.statements}
    assert len(read.of("A1")) <= 12 + 4


def test_an_admin_with_many_admins_fills_its_own_share_alone() -> None:
    history = fleet()
    flood = [certificate("A1", f"x{n}", Role.ADMIN, seq=n + 10) for n in range(100)]
    flood += [revocation(f"x{n}", f"y{m}", seq=m + 1) for n in range(100) for m in range(20)]
    kept, dropped = history.known.add(flood, history.now)
    assert len({s.issuer for s in kept if s.issuer.startswith("x")}) == set_module.MAX_ADMINS
    assert {s.issuer for s in dropped} <= {"B1"}


def test_what_is_known_is_not_new_again() -> None:
    """What is new goes on to the other members: what came back to its sender would go round without an end."""
    history = fleet()
    made = certificate("F", "x1", seq=50)
    assert history.known.add([made], history.now) == ([made], [])
    assert history.known.add([made], history.now) == ([], [])


def test_what_no_member_of_the_fleet_signed_is_not_kept() -> None:
    history = fleet()
    stranger = [certificate(SYBIL, f"x{n}", Role.ADMIN, seq=n + 1) for n in range(10)]
    assert history.known.add([*stranger, certificate("O1", "x1"), revocation("V1", "O1")], history.now) == ([], [])
    other = certificate("A1", "x1", fleet="another")
    assert history.known.add([other], history.now) == ([], [])


def test_a_statement_from_the_future_is_taken_when_its_time_has_come() -> None:
    history = fleet()
    for early in (certificate("F", "x1", iat=START + 301, seq=90), revocation("F", "O1", iat=START + 301, seq=91)):
        assert history.known.add([early], START) == ([], [])
        assert history.known.add([early], START + 1) == ([early], [])
    assert "x1" in history.known.roster(START + 1).members
    assert "O1" not in history.known.roster(START + 1).members
