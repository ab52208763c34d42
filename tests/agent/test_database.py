"""The SQLite shell: versions and migrations, and what SQLite says of the machine in our own errors."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from twinshare.agent import database as shell
from twinshare.agent.database import DatabaseDamaged, DatabaseNewer, Schema, open_database
from twinshare.protocols.errors import InsufficientResources, Unavailable

FIRST = Schema("CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY) STRICT;")
SECOND = Schema(
    "CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT;",
    ["ALTER TABLE things ADD COLUMN size INTEGER NOT NULL DEFAULT 7"],
)


def version_of(file: Path) -> int:
    with closing(sqlite3.connect(file)) as db:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        return int(found)


async def test_a_file_is_brought_forward_and_keeps_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "db"
    async with open_database(file, FIRST) as db:
        await db.execute("INSERT INTO things VALUES ('one')")
    assert version_of(file) == 1
    assert file.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        async with open_database(file, SECOND) as db:
            assert await db.query("SELECT * FROM things") == [("one", 7)]
        assert version_of(file) == 2


async def test_a_file_of_before_the_numbers_is_of_version_one(tmp_path: Path) -> None:
    file = tmp_path / "db"
    with closing(sqlite3.connect(file)) as old:
        old.executescript(FIRST.tables)
        old.execute("INSERT INTO things VALUES ('old')")
        old.commit()
    async with open_database(file, SECOND) as db:
        assert await db.query("SELECT * FROM things") == [("old", 7)]


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "db"
    async with open_database(file, FIRST) as db:
        await db.execute("INSERT INTO things VALUES ('one')")
    broken = Schema(FIRST.tables, ["DELETE FROM things; INSERT INTO nowhere VALUES (1)"])
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        async with open_database(file, broken):
            pass
    assert version_of(file) == 1
    async with open_database(file, FIRST) as db:
        assert await db.query("SELECT * FROM things") == [("one",)]


async def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "db"
    async with open_database(file, SECOND):
        pass
    before = file.read_bytes()
    with pytest.raises(DatabaseNewer, match=r"later version \(schema 2; this version reads up to 1\)"):
        async with open_database(file, FIRST):
            pass
    assert file.read_bytes() == before


async def test_what_is_no_database_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "db"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseDamaged, match="db is damaged"):
        async with open_database(file, FIRST):
            pass
    assert file.read_bytes() == b"no database" * 1000


async def test_a_lock_of_another_process_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "BUSY_TIMEOUT", 0.05)
    file = tmp_path / "db"
    async with open_database(file, FIRST) as db:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match="another process holds"):
                await db.execute("INSERT INTO things VALUES ('one')")
            other.execute("COMMIT")
        await db.execute("INSERT INTO things VALUES ('one')")
        assert await db.query("SELECT * FROM things") == [("one",)]


async def test_opening_waits_longer_for_a_lock_of_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "BUSY_TIMEOUT", 0.01)
    file = tmp_path / "db"
    async with open_database(file, FIRST):
        pass
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with trio.open_nursery() as nursery:

            async def free() -> None:
                await trio.sleep(0.3)  # thirty times as long as a statement waits
                other.execute("COMMIT")

            nursery.start_soon(free)
            async with open_database(file, FIRST) as db:
                assert await db.query("PRAGMA busy_timeout") == [(10,)]
        monkeypatch.setattr(shell, "OPEN_TIMEOUT", 0.01)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process holds"):
            async with open_database(file, FIRST):
                pass


async def test_a_full_disk_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db", FIRST) as db:
        await db.query("PRAGMA max_page_count = 1")  # SQLite then answers as for a full disk
        with pytest.raises(InsufficientResources, match="full"):
            await db.transact(
                lambda raw: raw.executemany("INSERT INTO things VALUES (?)", [("x" * 5000 + str(n),) for n in range(9)])
            )
        assert await db.query("SELECT * FROM things") == []


async def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db", FIRST) as db:
        await db.query("PRAGMA query_only = 1")  # SQLite then answers as for a read-only file
        with pytest.raises(Unavailable, match="cannot be written"):
            await db.execute("INSERT INTO things VALUES ('one')")


async def test_what_is_free_is_given_back_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "db"
    log = file.with_name("db-wal")
    rows = [(f"{number:04} " + "x" * 10_000,) for number in range(1200)]
    async with open_database(file, FIRST) as db:
        await db.transact(lambda raw: raw.executemany("INSERT INTO things VALUES (?)", rows) and None)
        assert log.stat().st_size > shell.MAX_LOG
        await db.query("PRAGMA wal_checkpoint(RESTART)")
        await db.execute("INSERT INTO things VALUES ('small')")
        assert log.stat().st_size <= shell.MAX_LOG
        assert file.stat().st_size > shell.COMPACTED_FROM
        await db.execute("DELETE FROM things WHERE name >= '0020' AND name < 'a'")
    assert file.stat().st_size > shell.COMPACTED_FROM
    async with open_database(file, FIRST) as db:
        assert len(await db.query("SELECT * FROM things")) == 21
        assert file.stat().st_size < 1 << 20
    assert version_of(file) == 1
