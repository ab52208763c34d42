"""Adversaries sign whatever they can with their keys: nobody above or beside them is harmed. 20,000 histories."""

from __future__ import annotations

import copy
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.protocols.membership_histories import (
    FOUNDER,
    PEERS,
    SYBIL,
    History,
    attack,
    certificate,
    fleet,
    live_on,
)
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.membership.rules import Roster, evaluate, newest_by_issuer
from twinshare.protocols.membership.statements import Revocation, Statement

WORLDS = 500
ATTACKS = 40
"""On each world."""
PARTS = 10
HISTORIES = 20_000
CAST: tuple[tuple[str, ...], ...] = (
    *((peer,) for peer in PEERS[1:]),
    (SYBIL,),
    ("A1", "A2"),
    ("A1", "B1"),
    ("A1", "B2"),
    ("B1", "B2"),
    ("A2", "V1", SYBIL),
    ("B1", "O1"),
    ("O1", "V1"),
)
START = fleet()


def world(rng: random.Random) -> History:
    history = copy.copy(START)
    history.known = START.known.copy()
    live_on(history, rng, rng.randint(0, 8))
    return history


def out_by(roster: Roster, rank: float, adversaries: tuple[str, ...]) -> list[str]:
    """Whom somebody of a higher rank than `rank` has revoked."""
    return [
        sub
        for sub, said in roster.said.items()
        if sub not in roster.members
        for issuer, word in newest_by_issuer(said).items()
        if isinstance(word.claims, Revocation) and issuer not in adversaries and roster.authorities[issuer].rank < rank
    ]


def check_harmless(history: History, adversaries: tuple[str, ...], made: list[Statement]) -> Roster:
    """Nobody above or beside the adversaries is another member than before, and who was put out by a higher rank is."""
    before = history.roster
    after = evaluate(FOUNDER, [*history.known.statements, *made], history.now)
    highest = min(history.rank(peer) for peer in adversaries)
    if highest == math.inf:
        assert after.members == before.members
    for peer, authority in before.authorities.items():
        if not authority.current or peer in adversaries:
            continue
        if authority.rank <= highest:
            assert after.members.get(peer) == before.members.get(peer), f"{peer} was changed"
            assert after.authorities[peer] == authority
        if not set(authority.path) & set(adversaries):
            assert after.authorities[peer].current, f"{peer}, an admin of another chain, was put out"
    for sub in out_by(before, highest, adversaries):
        assert sub not in after.members, f"{sub} is back, though a higher rank has revoked it"
    return after


def check_revocation(history: History, adversaries: tuple[str, ...], rng: random.Random) -> None:
    """Whoever stands above the adversaries can put out whom it could before, also when they sign on."""
    highest = min(history.rank(peer) for peer in adversaries)
    above = [peer for peer in PEERS[:5] if history.rank(peer) < highest and peer not in adversaries]
    if not above:
        return
    by, sub = rng.choice(above), rng.choice((*PEERS[1:], *adversaries))
    made = attack(history, rng, list(adversaries), 3)
    later = copy.copy(history)
    later.known = history.known.copy()
    later.known.add(made, later.now)
    try:
        later.revoke(by, sub)
    except TwinshareError:
        return
    assert sub not in later.roster.members
    check_harmless(later, tuple(z for z in adversaries), attack(later, rng, list(adversaries), 3))


def check_settled(history: History, rogue: str, made: list[Statement]) -> None:
    """The founder revokes a rogue and vouches for what came before the attack: everything is as it was, but for it."""
    before, last = history.roster, history.known.last(rogue)
    later = copy.copy(history)
    later.known = history.known.copy()
    later.known.add(made, later.now)
    drafts = later.drafts(FOUNDER)
    if history.rank(rogue) == math.inf:
        return
    drafts.revoke_with_adoption(rogue, head=last.id if last else "")
    after = drafts.roster.members
    for peer, member in before.members.items():
        if peer != rogue and member.certificate.exp > later.now:
            assert peer in after, f"{peer} is lost"
            assert (after[peer].certificate.role, after[peer].certificate.name) == (
                member.certificate.role,
                member.certificate.name,
            )
    assert set(after) <= set(before.members) - {rogue} | _unrevoked(before, rogue)


def _unrevoked(before: Roster, rogue: str) -> set[str]:
    """Those who were out by a revocation that is void now, or below the rogue."""
    return {sub for sub in before.said if sub not in before.members}


def run(seed: int, attacks: int) -> int:
    """Attack one world in so many ways, and return how many histories were checked."""
    rng = random.Random(seed)
    history = world(rng)
    for _ in range(attacks):
        adversaries = rng.choice(CAST)
        made = attack(history, rng, list(adversaries), rng.randint(1, 8))
        check_harmless(history, adversaries, made)
        if rng.random() < 0.2:
            check_revocation(history, adversaries, rng)
    return attacks


@pytest.mark.parametrize("part", range(PARTS))
def test_adversaries_harm_nobody_above_or_beside_them(part: int) -> None:
    checked = sum(run(part * WORLDS + number, ATTACKS) for number in range(WORLDS // PARTS))
    assert checked * PARTS == HISTORIES


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_adversaries_that_hypothesis_chooses_harm_nobody(rng: random.Random) -> None:
    history = world(rng)
    adversaries = rng.choice(CAST)
    check_harmless(history, adversaries, attack(history, rng, list(adversaries), rng.randint(1, 8)))
    check_revocation(history, adversaries, rng)


@pytest.mark.parametrize("rogue", ["A1", "A2", "B1", "B2"])
def test_when_the_founder_settles_it_all_is_undone_that_the_rogue_did(rogue: str) -> None:
    for seed in range(100):
        rng = random.Random(seed)
        history = world(rng)
        check_settled(history, rogue, attack(history, rng, [rogue], rng.randint(1, 8)))


def test_the_generated_attacks_do_change_what_they_may() -> None:
    """Else the properties above would hold for want of harm."""
    changed = {"members": 0, "out": 0, "admitted": 0}
    for seed in range(100):
        rng = random.Random(seed)
        history = world(rng)
        adversaries = rng.choice((("A1",), ("B1",), ("A2", "V1")))
        after = evaluate(FOUNDER, [*history.known.statements, *attack(history, rng, list(adversaries), 8)], history.now)
        before = history.roster.members
        changed["members"] += after.members != before
        changed["out"] += bool(before.keys() - after.members.keys())
        changed["admitted"] += bool(after.members.keys() - before.keys())
    assert all(count >= 20 for count in changed.values()), changed


def test_what_is_signed_by_nobody_who_is_certified_counts_for_nothing() -> None:
    history = fleet()
    made = [certificate(SYBIL, "O1"), certificate(SYBIL, "X2"), certificate("O1", "X2")]
    assert check_harmless(history, (SYBIL, "O1"), made).members == history.roster.members
