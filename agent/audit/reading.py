"""Reading an audit log from a node's file, whether its agent runs or not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from .chain import BEGINNING, Broken, End, Entry, Link, Row, check


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Nothing is written, and all that is read is of one moment. Raises: FileNotFoundError, PermissionError."""
    database.open("rb").close()
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        yield db


def newest(database: Path, count: int) -> list[tuple[int, Entry]]:
    """The last `count` rows with their numbers, oldest first."""
    query = "SELECT number, content FROM audit ORDER BY number DESC LIMIT ?"
    with _opened(database) as db:
        rows = db.execute(query, (count,)).fetchall()
    return [(number, msgspec.msgpack.decode(content, type=Entry)) for number, content in reversed(rows)]


def verify(database: Path, peer_id: str, seen: Link | None = None) -> tuple[Link, Link]:
    """Follow the whole log of the node `peer_id`; tells after which row it begins, and its last row.

    `seen` is a row that was its last one once: the log must still have it. Raises: Broken.
    """
    with _opened(database) as db:
        ends = {row[0]: End(Link(row[1], row[2]), row[3]) for row in db.execute("SELECT * FROM audit_ends")}
        rows = db.execute("SELECT number, hash, content, signature FROM audit ORDER BY number")
        links = (Row(Link(number, hash), content, signature) for number, hash, content, signature in rows)
        last = check(links, peer_id, ends.get("head"), ends.get("floor"))
        floor = ends["floor"].link if "floor" in ends else BEGINNING
        if seen is not None and seen != floor:
            kept = db.execute("SELECT hash FROM audit WHERE number = ?", (seen.number,)).fetchone()
            if seen.number < floor.number:
                raise Broken(f"row {seen.number} was dropped for its age: the log begins with row {floor.number + 1}")
            if kept is None or kept[0] != seen.hash:
                raise Broken(f"the log does not go on from row {seen.number} as it was seen: it was replaced")
    return floor, last
