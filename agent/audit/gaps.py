"""Dropping an account's older rows from the audit log: signed gaps stand in their place, and the chain goes on.

All functions run inside one transaction of the node's database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from .chain import BEGINNING, ChainEntry, Gap, Pen

_GAPS = "SELECT before, before_hash, last, last_hash, signature FROM audit_gaps ORDER BY before"
_NUMBERS = "SELECT number FROM audit_accounts WHERE account = ? ORDER BY number"
_LEFT = (
    "SELECT count(*), coalesce(sum(length(content)), 0) FROM audit_accounts JOIN audit USING (number) WHERE account = ?"
)


def read_gaps(db: sqlite3.Connection) -> list[Gap]:
    """Return the gaps of the chain, in its order."""
    rows = db.execute(_GAPS)
    return [
        Gap(ChainEntry(first, start), ChainEntry(last, end), signature) for first, start, last, end, signature in rows
    ]


def drop_older_half(pen: Pen, account: str, db: sqlite3.Connection) -> tuple[int, int]:
    """Drop the older half of an account's rows; return how many rows and bytes it has left."""
    numbers = [number for (number,) in db.execute(_NUMBERS, (account,))]
    dropped = numbers[: (len(numbers) + 1) // 2]
    if dropped:
        spans = [ChainEntry(number, _hash_of(db, number)) for number in dropped]
        db.executemany("DELETE FROM audit WHERE number = ?", [(number,) for number in dropped])
        db.execute("DELETE FROM audit_accounts WHERE account = ? AND number <= ?", (account, dropped[-1]))
        _close_up(pen, db, spans)
    count, size = db.execute(_LEFT, (account,)).fetchone()
    return count, size


def convert_floor(pen: Pen, floor: ChainEntry, db: sqlite3.Connection) -> None:
    """Turn the floor of a log that was written before there were gaps into the gap that it is."""
    gap = pen.gap(BEGINNING, floor)
    row = (gap.before.number, gap.before.hash, gap.last.number, gap.last.hash, gap.signature)
    db.execute("INSERT OR IGNORE INTO audit_gaps VALUES (?, ?, ?, ?, ?)", row)
    db.execute("DELETE FROM audit_ends WHERE name = 'floor'")


def _close_up(pen: Pen, db: sqlite3.Connection, dropped: list[ChainEntry]) -> None:
    """Sign the gaps that the dropped rows leave, each as long as it can be."""
    old = read_gaps(db)
    spans = sorted(
        [(gap.before.number + 1, gap.last) for gap in old] + [(entry.number, entry) for entry in dropped],
        key=lambda span: span[0],
    )
    kept = {(gap.before.number, gap.last.number): gap for gap in old}
    gaps = []
    for first, last in _merged(spans):
        before = ChainEntry(first - 1, _hash_of(db, first - 1))
        gaps.append(kept.get((before.number, last.number)) or pen.gap(before, last))
    db.execute("DELETE FROM audit_gaps")
    db.executemany(
        "INSERT INTO audit_gaps VALUES (?, ?, ?, ?, ?)",
        [(gap.before.number, gap.before.hash, gap.last.number, gap.last.hash, gap.signature) for gap in gaps],
    )


def _merged(spans: list[tuple[int, ChainEntry]]) -> Iterator[tuple[int, ChainEntry]]:
    first, last = spans[0]
    for start, end in spans[1:]:
        if start != last.number + 1:
            yield first, last
            first = start
        last = end
    yield first, last


def _hash_of(db: sqlite3.Connection, number: int) -> bytes:
    if number == BEGINNING.number:
        return BEGINNING.hash
    row = db.execute("SELECT hash FROM audit WHERE number = ?", (number,)).fetchone()
    return bytes(row[0]) if row else bytes(32)  # of a log that was tampered with: what stands there stays broken
