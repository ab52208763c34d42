"""The SQLite shell: one connection in one worker thread (WAL, synchronous=FULL), a schema number, typed errors.

All statements run in order in one thread, so a transaction is never interleaved. Transactions that wait for that thread
are one commit: what many callers write costs each of them one wait for the disk. What SQLite raises for a state of the
machine is renamed here and nowhere else: a full disk to `InsufficientResources`; a file that another process locks,
that cannot be written or read to `Unavailable`. Both pass, and nothing was written then: `PASSING_FAULTS`.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import outcome
import trio

from ..protocols.errors import InsufficientResources, Unavailable
from .files import DISK_CURE

Result = TypeVar("Result")
Work: TypeAlias = Callable[[sqlite3.Connection], Any]

BUSY_TIMEOUT, OPEN_TIMEOUT = 5.0, 60.0
"""Seconds in which a statement waits for a lock of another process, and in which opening the file does."""

CACHE_SIZE = 1 << 20
"""Bytes of pages that SQLite keeps; twice as many, its default, make neither rows nor writes cheaper."""
MAX_LOG = 4 << 20
"""Bytes that the write-ahead log keeps on the disk after a transaction that was larger."""
COMPACTED_FROM = 8 << 20
"""Free bytes in a file, at least, for which it is compacted when it is opened and half of it is free."""

PASSING_FAULTS = (InsufficientResources, Unavailable)

_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "another process holds the database",
    sqlite3.SQLITE_LOCKED: "another process holds the database",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_PROTOCOL: "another process holds the database",
}
_UNWRITABLE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
_FULL_BELOW = 1 << 20
"""Free bytes of a disk below which an input or output error of SQLite means that it is full: the error has no cause."""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class DatabaseRefused(Exception):
    """The file cannot be used by this version; the message says why and what to do."""


class DatabaseNewer(DatabaseRefused):
    """A later version has written the file. Nothing was changed."""


CURE: Final = "stop the agent and run `twinshare repair`, which keeps what can be read of it"


class DatabaseDamaged(DatabaseRefused):
    """The file is no database, or a damaged one. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a file.

    `tables` are `CREATE … IF NOT EXISTS` statements of the present form. The migration at place n, counted from 1,
    turns the tables of version n into those of version n + 1. The version of a file that is written stands in its
    `user_version`: 1 + the number of migrations. A file of before the numbers is of version 1.
    """

    tables: str
    migrations: Sequence[str] = ()

    @property
    def version(self) -> int:
        return 1 + len(self.migrations)


class _Transaction:
    """What waits to be written. `awoken` is set when it has its `result`, and when it is to begin the next commit."""

    __slots__ = ("awoken", "result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.awoken = trio.Event()
        self.result: outcome.Outcome[Any] | None = None


class Database:
    """An open file. Made by `open_database`. `problem` says why nothing could be written last, empty if it could."""

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self._file, self._connection = file, connection
        self.problem = ""
        self._one_thread = trio.CapacityLimiter(1)
        self._waiting: list[_Transaction] = []
        self._is_writing = False

    async def transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` in a durable transaction; what it did is rolled back when it raises.

        It is run a second time, after a rollback, where something that was to be committed with it has failed.
        Not interrupted by cancellation once it has begun: the caller always learns what was written.
        Raises: InsufficientResources when the disk is full, Unavailable, and what `work` raises.
        """

        await trio.lowlevel.checkpoint_if_cancelled()
        mine = _Transaction(work)
        self._waiting.append(mine)
        if self._is_writing or len(self._waiting) > 1:
            await self._wait(mine)
        done = mine.result or await self._commit_all_waiting()
        try:
            result: Result = done.unwrap()
        except PASSING_FAULTS as error:
            self.problem = error.message
            raise
        self.problem = ""
        return result

    async def _wait(self, mine: _Transaction) -> None:
        try:
            await mine.awoken.wait()
        except trio.Cancelled:
            if mine in self._waiting:
                self._waiting.remove(mine)
                self._let_next_begin()
                raise
            with trio.CancelScope(shield=True):
                await mine.awoken.wait()

    async def _commit_all_waiting(self) -> outcome.Outcome[Any]:
        """Return the result of the first of them, which calls this. The next one begins when it is done."""
        batch, self._waiting = self._waiting, []
        self._is_writing = True
        try:
            with trio.CancelScope(shield=True):
                works = [each.work for each in batch]
                results = await trio.to_thread.run_sync(self._commit, works, limiter=self._one_thread)
            for each, result in zip(batch, results, strict=True):
                each.result = result
                each.awoken.set()
            return results[0]
        except BaseException:  # there was no thread for it
            self._waiting = batch[1:] + self._waiting
            raise
        finally:
            self._is_writing = False
            self._let_next_begin()

    def _let_next_begin(self) -> None:
        if self._waiting and not self._is_writing:
            self._waiting[0].awoken.set()

    def _commit(self, works: Sequence[Work]) -> list[outcome.Outcome[Any]]:
        """Blocking. What fails beside others is done alone, and so are they: an error is that of one caller."""
        if len(works) > 1:
            together = outcome.capture(self._transaction, works)
            if isinstance(together, outcome.Value):
                return [outcome.Value(each) for each in together.value]
        return [outcome.capture(self._run_alone, work) for work in works]

    def _run_alone(self, work: Work) -> Any:
        return self._transaction([work])[0]

    def _transaction(self, works: Iterable[Work]) -> list[Any]:
        with _renamed_errors(self._file), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            return [work(self._connection) for work in works]

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Run one durable statement. Raises: InsufficientResources when the disk is full, Unavailable."""
        await self.transact(lambda db: db.execute(statement, values) and None)

    async def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a SELECT. Raises: Unavailable."""

        def run() -> list[tuple[Any, ...]]:
            with _renamed_errors(self._file):
                return self._connection.execute(statement, values).fetchall()

        return await trio.to_thread.run_sync(run, limiter=self._one_thread)

    async def erase_deleted(self) -> None:
        """Let nothing that was overwritten or deleted be found in the files: the write-ahead log is emptied.

        Transactions go on while most of the log is copied into the file, and wait only for the rest.
        While another process reads the file nothing happens; the next call does it.
        Raises: InsufficientResources when the disk is full, Unavailable.
        """
        await trio.to_thread.run_sync(self._copy_log)
        await self.query("PRAGMA wal_checkpoint(TRUNCATE)")

    def _copy_log(self) -> None:
        """Blocking. On a connection of its own: no transaction waits for a passive checkpoint."""
        with _renamed_errors(self._file), closing(sqlite3.connect(self._file, isolation_level=None)) as beside:
            beside.execute("PRAGMA wal_checkpoint(PASSIVE)")

    async def close(self) -> None:
        """Close the file; not interrupted by cancellation."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._one_thread)


@asynccontextmanager
async def open_database(file: Path, schema: Schema, *, check: bool = False) -> AsyncIterator[Database]:
    """Open the file (mode 0600), made where there is none, and migrate it to the version of `schema`.

    `check` reads every page of the file first. Raises: DatabaseNewer, DatabaseDamaged, InsufficientResources,
    Unavailable.
    """
    database = Database(file, await trio.to_thread.run_sync(_connect, file, schema, check))
    try:
        yield database
    finally:
        await database.close()


def _connect(file: Path, schema: Schema, check: bool) -> sqlite3.Connection:
    """Blocking. Raises: as `open_database`."""
    with _renamed_errors(file):
        _create(file)
        connection = sqlite3.connect(file, timeout=OPEN_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            _migrate(connection, file, schema, check)
            connection.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection


def _create(file: Path) -> None:
    try:
        file.touch(mode=0o600)
    except OSError as error:
        raise Unavailable(f"the database {file} cannot be opened: {error.strerror}") from None


def _migrate(db: sqlite3.Connection, file: Path, schema: Schema, check: bool) -> None:
    (stored,) = db.execute("PRAGMA user_version").fetchone()
    if stored > schema.version:
        raise DatabaseNewer(
            f"{file} was written by a later version (schema {stored}; this version reads up to {schema.version}); "
            "install that version again, or restore a copy of the file from before"
        )
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA secure_delete=ON")
    db.execute(f"PRAGMA cache_size=-{CACHE_SIZE >> 10}")
    db.execute(f"PRAGMA journal_size_limit={MAX_LOG}")
    if check and (said := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        raise DatabaseDamaged(f"{file} is damaged: {said}; {CURE}")
    # An empty file needs no migration: its tables are made in the present form.
    is_empty = db.execute("SELECT 1 FROM sqlite_schema").fetchone() is None
    pending = () if is_empty else schema.migrations[max(stored, 1) - 1 :]
    number = f"PRAGMA user_version = {schema.version};" if stored != schema.version else ""
    try:
        db.executescript(f"BEGIN IMMEDIATE;\n{';'.join(pending)};\n{schema.tables};\n{number}\nCOMMIT;")
    finally:
        if db.in_transaction:
            db.rollback()
    db.execute("PRAGMA foreign_keys=ON")
    _compact(db, file)


def _compact(db: sqlite3.Connection, file: Path) -> None:
    """Give back what a larger database has left free. It is written anew for that, so there must be room for it."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    if free * size < COMPACTED_FROM or free * 2 < pages:
        return
    if shutil.disk_usage(file.parent).free > 2 * (pages - free) * size + COMPACTED_FROM:
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def _renamed_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(file.parent)):
            raise InsufficientResources(f"the disk of the node is full: {error}") from None
        if code in _UNAVAILABLE:
            raise Unavailable(f"{_UNAVAILABLE[code]} ({error}); try again in a moment") from None
        if code in _UNWRITABLE:
            raise Unavailable(f"the database cannot be written ({error}); {DISK_CURE}") from None
        if code in _DAMAGED:
            raise DatabaseDamaged(f"{file} is damaged: {error}; {CURE}") from None
        raise


def _is_full(directory: Path) -> bool:
    try:
        return shutil.disk_usage(directory).free < _FULL_BELOW
    except OSError:
        return False
