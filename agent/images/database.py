"""The file `images.db`: which names stand for which bases. One connection in one worker thread; every write lasts.

A base is written down before its file gets its place and is struck off after the file has gone, so whatever a crash
left half done is known at the next start: its row is not marked whole. A file that is no
database any more is set aside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog
import trio

from ...protocols.errors import InsufficientResources
from ...protocols.reference import Reference
from .shelf import Base, Held, Shelf

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

# The column `whole`: a base that is coming or going, one that is in its place, one whose file is not what it should be.
_HALF, _WHOLE, _DAMAGED = 0, 1, 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS bases (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, allocated INTEGER NOT NULL, source TEXT NOT NULL,
    created_at REAL NOT NULL, labels TEXT NOT NULL, whole INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS names (
    registry TEXT NOT NULL, name TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL REFERENCES bases (digest),
    manifest TEXT NOT NULL, PRIMARY KEY (registry, name, tag)
) STRICT;
"""


class Database:
    """Every method but `load` is one durable transaction. Raises: InsufficientResources when the disk is full."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._one_thread = trio.CapacityLimiter(1)

    async def load(self) -> tuple[Shelf, list[str]]:
        """The images that are whole, and the digests of those that are not."""

        def work(db: sqlite3.Connection) -> tuple[Shelf, list[str]]:
            shelf = Shelf()
            for row in db.execute(
                "SELECT digest, size, allocated, source, created_at, labels, whole FROM bases WHERE whole"
            ):
                shelf.bases[row[0]] = _base(*row)
            for *name, digest, manifest in db.execute(
                "SELECT registry, name, tag, digest, manifest FROM names ORDER BY rowid"
            ):
                reference = Reference(registry=name[0], name=name[1], tag=name[2])
                shelf.names[reference] = Held(digest, manifest)
            return shelf, [digest for (digest,) in db.execute("SELECT digest FROM bases WHERE NOT whole")]

        return await self._run(work)

    async def announce(self, base: Base) -> None:
        """A base's file is about to get its place."""
        await self._run(lambda db: _put_base(db, base, _HALF))

    async def restore(self, base: Base, names: Mapping[Reference, Held]) -> None:
        """The base is in its place, damaged or not; write down what is known of it, and names that it has besides."""

        def work(db: sqlite3.Connection) -> None:
            _put_base(db, base, _DAMAGED if base.damaged else _WHOLE)
            for name, held in names.items():
                _put_name(db, name, held)

        await self._run(work)

    async def give(self, name: Reference, held: Held) -> None:
        """The base is in its place, and the name stands for it."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE bases SET whole = 1 WHERE digest = ?", (held.digest,))
            _put_name(db, name, held)

        await self._run(work)

    async def take(self, names: Iterable[Reference], digest: str | None) -> None:
        """The names stand for nothing any more; the base of `digest` is about to go."""

        def work(db: sqlite3.Connection) -> None:
            rows = [(name.registry, name.name, name.tag) for name in names]
            db.executemany("DELETE FROM names WHERE registry = ? AND name = ? AND tag = ?", rows)
            db.execute("UPDATE bases SET whole = 0 WHERE digest = ?", (digest,))

        await self._run(work)

    async def strike(self, digest: str) -> None:
        """The base's file has gone."""

        def work(db: sqlite3.Connection) -> None:
            # Names go first: after a mishap some may still stand for it.
            db.execute("DELETE FROM names WHERE digest = ?", (digest,))
            db.execute("DELETE FROM bases WHERE digest = ?", (digest,))

        await self._run(work)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._one_thread)

    async def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        def transaction() -> Result:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return work(self._connection)

        try:
            return await trio.to_thread.run_sync(transaction, limiter=self._one_thread)
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise InsufficientResources("the disk of the node is full: the list of images cannot be kept") from None
            raise


def _put_base(db: sqlite3.Connection, base: Base, whole: int) -> None:
    labels = msgspec.json.encode(dict(base.labels)).decode()
    row = (base.digest, base.size, base.allocated, base.source, base.created_at.timestamp(), labels, whole)
    db.execute(
        "INSERT INTO bases VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET size = excluded.size,"
        " allocated = excluded.allocated, source = excluded.source, created_at = excluded.created_at,"
        " labels = excluded.labels, whole = excluded.whole",
        row,
    )


def _put_name(db: sqlite3.Connection, name: Reference, held: Held) -> None:
    row = (name.registry, name.name, name.tag, held.digest, held.manifest)
    db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?)", row)


def _base(digest: str, size: int, allocated: int, source: str, created_at: float, labels: str, whole: int) -> Base:
    return Base(
        digest=digest,
        size=size,
        allocated=allocated,
        created_at=datetime.fromtimestamp(created_at, UTC),
        source=source,
        labels=msgspec.json.decode(labels, type=dict[str, str]),
        damaged=whole == _DAMAGED,
    )


@asynccontextmanager
async def open_database(file: Path) -> AsyncIterator[Database]:
    """Open the file, or make it with mode 0600. One that cannot be read as a database is set aside."""

    def work() -> sqlite3.Connection:
        try:
            return _connect(file)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            log.warning(
                "the list of images is damaged, and is set aside", error=str(error), cure="twinshare image fsck"
            )
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    file.with_name(file.name + suffix).replace(file.with_name(f"{file.name}.damaged{suffix}"))
            return _connect(file)

    database = Database(await trio.to_thread.run_sync(work))
    try:
        yield database
    finally:
        await database.close()


def _connect(file: Path) -> sqlite3.Connection:
    """Blocking. Raises: sqlite3.DatabaseError for a file that is none."""
    file.touch(mode=0o600)
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.executescript(_SCHEMA)
        [(said,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
    except BaseException:
        connection.close()
        raise
    return connection
