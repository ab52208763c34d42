"""The chain of the audit log by itself: whatever is done to its rows is found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinshare.agent.audit.chain import BEGINNING, Broken, ChainEntry, Gap, Head, Pen, Row, check
from twinshare.agent.identity import Identity

SEED, OTHER = bytes(range(32)), bytes(range(1, 33))
PEER_ID = Identity(SEED).peer_id
PEN = Pen(SEED)
Rows = list[Row]
Chance = random.Random


def whole(contents: list[bytes]) -> tuple[Rows, Head]:
    rows = list(PEN.rows(BEGINNING, contents))
    return rows, PEN.head(rows[-1].link)


def flip(data: bytes, chance: Chance) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def put(rows: Rows, at: int, row: Row) -> Rows:
    return [*rows[:at], row, *rows[at + 1 :]]


def forged(rows: Rows, at: int, pen: Pen) -> Rows:
    """Another content, and all after it hashed anew."""
    former = rows[at - 1].link if at else BEGINNING
    return [*rows[:at], *pen.rows(former, [b"forged", *(row.content for row in rows[at + 1 :])])]


HARM: dict[str, Callable[[Rows, int, Chance], Rows]] = {
    "a bit of a content": lambda rows, at, chance: put(
        rows, at, replace(rows[at], content=flip(rows[at].content, chance))
    ),
    "a bit of a signature": lambda rows, at, chance: put(
        rows, at, replace(rows[at], signature=flip(rows[at].signature, chance))
    ),
    "a bit of a hash": lambda rows, at, chance: put(
        rows, at, replace(rows[at], link=ChainEntry(at + 1, flip(rows[at].link.hash, chance)))
    ),
    "a row dropped": lambda rows, at, chance: [*rows[:at], *rows[at + 1 :]],
    "a row dropped, numbers moved up": lambda rows, at, chance: [
        replace(row, link=ChainEntry(number, row.link.hash))
        for number, row in enumerate([*rows[:at], *rows[at + 1 :]], start=1)
    ],
    "rows cut off the end": lambda rows, at, chance: rows[:at],
    "a row twice": lambda rows, at, chance: [*rows[: at + 1], *rows[at:]],
    "two rows changed about": lambda rows, at, chance: [*rows[:at], *reversed(rows[at : at + 2]), *rows[at + 2 :]],
    "hashed anew, signed by another": lambda rows, at, chance: forged(rows, at, Pen(OTHER)),
    "hashed anew, old signatures": lambda rows, at, chance: [
        replace(new, signature=old.signature)
        for new, old in zip(forged(rows, at, Pen(OTHER)), rows, strict=True)
    ],
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(st.binary(min_size=1, max_size=30), min_size=2, max_size=6), seed=st.integers(0, 1 << 32))
def test_every_harm_is_found(harm: str, contents: list[bytes], seed: int) -> None:
    rows, head = whole(contents)
    assert check(rows, PEER_ID, head) == rows[-1].link
    chance = random.Random(seed)
    last = len(rows) - 1 if "changed about" in harm else len(rows)
    harmed = HARM[harm](rows, chance.randrange(last), chance)
    with pytest.raises(Broken):
        check(harmed, PEER_ID, head)


def test_the_head_and_the_gaps_are_signed_too() -> None:
    rows, head = whole([b"one", b"two", b"three", b"four"])
    first, second = PEN.gap(BEGINNING, rows[0].link), PEN.gap(rows[1].link, rows[2].link)
    kept = [rows[1], rows[3]]
    assert check(kept, PEER_ID, head, [first, second]) == rows[3].link
    assert check(rows[:3], PEER_ID, head, [PEN.gap(rows[2].link, rows[3].link)]) == rows[3].link
    other = Pen(OTHER)
    harmed: list[tuple[Rows, Head | None, list[Gap]]] = [
        (kept, head, [first]),
        (kept, head, [second]),
        (kept, head, [first, other.gap(rows[1].link, rows[2].link)]),
        (kept, head, [first, replace(second, last=rows[3].link)]),
        (kept, head, [first, PEN.gap(rows[1].link, rows[1].link)]),
        (kept, head, [first, PEN.gap(rows[1].link, BEGINNING)]),
        (rows[1:], head, []),
        (rows[:2], other.head(rows[1].link), []),
        (rows[:2], replace(head, link=rows[1].link), []),
        (rows, None, []),
        ([], head, []),
    ]
    for left, end, gaps in harmed:
        with pytest.raises(Broken):
            check(left, PEER_ID, end, gaps)
    with pytest.raises(Broken, match="not signed by this node"):
        check(rows, Identity(OTHER).peer_id, head)


def test_a_log_without_rows_is_whole() -> None:
    assert check([], PEER_ID, None) == BEGINNING
