"""The SQLite shell: versions and migrations, and what SQLite says of the machine in our own errors."""

import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.testing

from twinshare.agent import database as shell
from twinshare.agent.database import Database, DatabaseDamaged, DatabaseNewer, Schema, open_database
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


class Held:
    """A database whose only thread is held by a transaction until `free` is set; `commits` are counted."""

    def __init__(self, db: Database) -> None:
        self.db, self.commits = db, 0
        self.begun, self.free = trio.Event(), threading.Event()
        db._connection.set_trace_callback(self._count)

    def _count(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    async def hold(self) -> None:
        def work(raw: sqlite3.Connection) -> None:
            trio.from_thread.run_sync(self.begun.set)
            self.free.wait(30)
            raw.execute("INSERT INTO things VALUES ('first')")

        await self.db.transact(work)

    async def names(self) -> list[str]:
        return [name for (name,) in await self.db.query("SELECT name FROM things ORDER BY name")]


@asynccontextmanager
async def held(file: Path) -> AsyncIterator[tuple[Held, trio.Nursery]]:
    async with open_database(file, FIRST) as db:
        it = Held(db)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.hold)
            try:
                await it.begun.wait()
                yield it, nursery
            finally:
                it.free.set()


async def insert(db: Database, name: str) -> None:
    await db.execute("INSERT INTO things VALUES (?)", (name,))


async def test_transactions_that_wait_are_one_commit(tmp_path: Path) -> None:
    """Each was one of its own: who waited behind ten others waited for the disk ten times."""
    async with held(tmp_path / "db") as (it, nursery):
        for number in range(10):
            nursery.start_soon(insert, it.db, str(number))
        await trio.testing.wait_all_tasks_blocked()
        it.free.set()
        with trio.fail_after(30):
            while len(await it.names()) < 11:
                await trio.sleep(0.01)
        assert it.commits == 2


async def test_a_transaction_that_fails_takes_back_no_other(tmp_path: Path) -> None:
    failed: list[str] = []

    async def fail(db: Database, error: Exception) -> None:
        def work(raw: sqlite3.Connection) -> None:
            raw.execute("INSERT INTO things VALUES ('half')")
            raise error

        with pytest.raises(type(error)):
            await db.transact(work)
        failed.append(type(error).__name__)

    async with held(tmp_path / "db") as (it, nursery):
        nursery.start_soon(insert, it.db, "one")
        nursery.start_soon(fail, it.db, Unavailable("as a lock says it"))
        nursery.start_soon(fail, it.db, KeyError("as a bug says it"))
        nursery.start_soon(insert, it.db, "two")
        await trio.testing.wait_all_tasks_blocked()
        it.free.set()
    async with open_database(tmp_path / "db", FIRST) as db:
        assert await db.query("SELECT name FROM things ORDER BY name") == [("first",), ("one",), ("two",)]
    assert sorted(failed) == ["KeyError", "Unavailable"]


@pytest.mark.parametrize("when_it_is_next", [False, True])
async def test_who_stops_waiting_has_written_nothing_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_it_is_next: bool
) -> None:
    scope, let_next_begin = trio.CancelScope(), Database._let_next_begin

    def give_up_first(db: Database) -> None:
        scope.cancel()
        let_next_begin(db)

    async def give_up(db: Database) -> None:
        with scope:
            await insert(db, "given up")

    async with held(tmp_path / "db") as (it, nursery):
        nursery.start_soon(give_up, it.db)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(insert, it.db, "kept")
        await trio.testing.wait_all_tasks_blocked()
        if when_it_is_next:
            monkeypatch.setattr(Database, "_let_next_begin", give_up_first)
        else:
            scope.cancel()
        it.free.set()
        with trio.fail_after(30):
            while await it.names() != ["first", "kept"]:
                await trio.sleep(0.01)
        assert scope.cancelled_caught


async def test_what_has_begun_is_written_however_its_caller_is_cancelled(tmp_path: Path) -> None:
    done: list[str] = []

    async with open_database(tmp_path / "db", FIRST) as db, trio.open_nursery() as nursery:
        it = Held(db)

        async def hold() -> None:
            await it.hold()
            done.append("first")

        nursery.start_soon(hold)
        await it.begun.wait()
        nursery.cancel_scope.cancel()
        it.free.set()
    assert done == ["first"]


async def test_who_is_cancelled_before_writes_nothing(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db", FIRST) as db:
        with trio.CancelScope() as scope:
            scope.cancel()
            await insert(db, "one")
        assert scope.cancelled_caught
        assert await db.query("SELECT name FROM things") == []


async def test_transactions_go_on_while_the_log_is_copied_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, written, copy_log = trio.Event(), threading.Event(), Database._copy_log

    def copy(db: Database) -> None:
        trio.from_thread.run_sync(begun.set)
        assert written.wait(30)
        copy_log(db)

    file = tmp_path / "db"
    async with open_database(file, FIRST) as db, trio.open_nursery() as nursery:
        monkeypatch.setattr(Database, "_copy_log", copy)
        nursery.start_soon(db.erase_deleted)
        await begun.wait()
        await insert(db, "one")
        written.set()
    monkeypatch.undo()
    async with open_database(file, FIRST) as db:
        await insert(db, "two")
        assert file.with_name("db-wal").stat().st_size > 0
        await db.erase_deleted()
        assert file.with_name("db-wal").stat().st_size == 0


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
