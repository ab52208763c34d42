"""Reading an audit log from a node's file, whether its agent runs or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from .chain import BEGINNING, Broken, ChainEntry, Entry, Gap, Head, Row, check
from .gaps import read_gaps


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Nothing is written, and all that is read is of one moment. Raises: FileNotFoundError, PermissionError."""
    database.open("rb").close()
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        yield db


def newest(database: Path, count: int, before: int | None = None) -> list[tuple[int, Entry]]:
    """Return the last `count` rows with their numbers, of those before row `before`, oldest first."""
    query = "SELECT number, content FROM audit WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT ?"
    with _opened(database) as db:
        rows = db.execute(query, (before, before, count)).fetchall()
    return [(number, msgspec.msgpack.decode(content, type=Entry)) for number, content in reversed(rows)]


def verify(database: Path, peer_id: str, seen: ChainEntry | None = None) -> tuple[int, ChainEntry]:
    """Follow the whole log of the node `peer_id`; return how many rows it has, and its last one.

    `seen` is a row that was its last one once: the log must still go on from it. Raises: Broken.
    """
    with _opened(database) as db:
        heads = db.execute("SELECT number, hash, signature FROM audit_ends WHERE name = 'head'").fetchall()
        head = next((Head(ChainEntry(number, hash), signature) for number, hash, signature in heads), None)
        rows = db.execute("SELECT number, hash, content, signature FROM audit ORDER BY number")
        links = (Row(ChainEntry(number, hash), content, signature) for number, hash, content, signature in rows)
        gaps = read_gaps(db)
        last = check(links, peer_id, head, gaps)
        if seen is not None:
            _look_for(db, gaps, seen)
        count = db.execute("SELECT count(*) FROM audit").fetchone()[0]
    return count, last


def _look_for(db: sqlite3.Connection, gaps: list[Gap], seen: ChainEntry) -> None:
    """Raises: Broken unless the row is in the log, or was the last one of those that were dropped together."""
    if seen in {BEGINNING, *(gap.last for gap in gaps)}:
        return
    if any(gap.before.number < seen.number < gap.last.number for gap in gaps):
        raise Broken(f"row {seen.number} was dropped for its age: check with a later one")
    kept = db.execute("SELECT hash FROM audit WHERE number = ?", (seen.number,)).fetchone()
    if kept is None or kept[0] != seen.hash:
        raise Broken(f"the log does not go on from row {seen.number} as it was seen: it was replaced")
