"""Repair of a node's database: what can be read of a damaged file goes into a new one, and the damaged one is kept.

VMs and images are not in it: the next start finds them by libvirt's metadata and the images' own files.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .files import sync_directory

TOGETHER = "audit"
"""Tables whose names begin so are a signed chain: they are kept all or not at all."""
_COMPANIONS = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Repaired:
    """`kept` and `lost` are names of tables. `damaged` is where the file is now."""

    kept: Sequence[str]
    lost: Sequence[str]
    damaged: Path


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    statements: Sequence[str]
    rows: Sequence[tuple[object, ...]]


def repair(database: Path, now: datetime | None = None) -> Repaired | None:
    """Repair a database that nobody has open; None when nothing is wrong with it (blocking).

    It is safe to repeat after a crash. Raises: OSError, sqlite3.OperationalError when the disk cannot be written.
    """
    if not database.exists() or _is_sound(database):
        return None
    version, tables, lost = _readable(database)
    if any(name.startswith(TOGETHER) for name in lost):
        lost = sorted({*lost, *(table.name for table in tables if table.name.startswith(TOGETHER))})
        tables = [table for table in tables if not table.name.startswith(TOGETHER)]
    fresh = database.with_name(f"{database.name}.repaired")
    _write(fresh, version, tables)
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    damaged = database.with_name(f"{database.name}.damaged-{stamp}")
    for companion in _COMPANIONS:
        if (beside := Path(f"{database}{companion}")).exists():
            beside.rename(f"{damaged}{companion}")
    damaged.hardlink_to(database)
    fresh.replace(database)
    sync_directory(database.parent)
    return Repaired(kept=[table.name for table in tables], lost=lost, damaged=damaged)


def _is_sound(database: Path) -> bool:
    try:
        with _opened(database) as db:
            return [row[0] for row in db.execute("PRAGMA integrity_check(1)")] == ["ok"]
    except sqlite3.DatabaseError:
        return False


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)) as db:
        yield db


def _readable(database: Path) -> tuple[int, list[_Table], list[str]]:
    """The schema's version, the tables that can be read to their last row, and the names of the others."""
    tables: list[_Table] = []
    lost: list[str] = []
    try:
        with _opened(database) as db:
            version: int = db.execute("PRAGMA user_version").fetchone()[0]
            parts = db.execute(
                "SELECT tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type DESC"
            ).fetchall()
            for name in dict.fromkeys(part[0] for part in parts):
                statements = [sql for owner, sql in parts if owner == name]
                try:
                    rows = db.execute(f'SELECT * FROM "{name}" NOT INDEXED').fetchall()  # noqa: S608 - a name of its own schema
                    tables.append(_Table(name, statements, rows))
                except sqlite3.DatabaseError:
                    lost.append(name)
            return version, tables, lost
    except sqlite3.DatabaseError:
        return 0, [], ["all tables"]


def _write(file: Path, version: int, tables: Sequence[_Table]) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    if not tables:
        return
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN")
        for table in tables:
            for statement in table.statements:
                db.execute(statement)
            for row in table.rows:
                marks = ", ".join("?" * len(row))
                db.execute(f'INSERT OR REPLACE INTO "{table.name}" VALUES ({marks})', row)  # noqa: S608 - as above
        db.execute(f"PRAGMA user_version = {version}")
        db.execute("COMMIT")
    with file.open("rb") as written:
        os.fsync(written.fileno())
