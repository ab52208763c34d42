"""The database `images.db`: which names stand for which bases; every write is durable when it returns.

A base is written down before its file gets its place and is struck off after the file has gone, so whatever a crash
left half done is known at the next start: its row is not marked whole. A file that is no
database any more is set aside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from ...protocols.reference import Reference
from ..database import Database, DatabaseDamaged, Schema, open_database
from .tag_index import Base, TagIndex, TagTarget

log = structlog.get_logger(__name__)

# The column `whole`: a base that is coming or going, one that is in its place, one whose file is not what it should be.
_HALF, _WHOLE, _DAMAGED = 0, 1, 2

SCHEMA = Schema(
    """
CREATE TABLE IF NOT EXISTS bases (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, allocated INTEGER NOT NULL, source TEXT NOT NULL,
    created_at REAL NOT NULL, labels TEXT NOT NULL, whole INTEGER NOT NULL, owner TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS names (
    registry TEXT NOT NULL, name TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL REFERENCES bases (digest),
    manifest TEXT NOT NULL, owner TEXT NOT NULL DEFAULT '', PRIMARY KEY (registry, name, tag)
) STRICT;
""",
    # Of before there were owners: "" is the node's admin.
    [
        """ALTER TABLE bases ADD COLUMN owner TEXT NOT NULL DEFAULT '';
        ALTER TABLE names ADD COLUMN owner TEXT NOT NULL DEFAULT ''"""
    ],
)


class ImageDatabase:
    """Every method but `load` is one durable transaction. Raises: InsufficientResources when the disk is full."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[TagIndex, list[str]]:
        """The images that are whole, and the digests of those that are not."""

        def work(db: sqlite3.Connection) -> tuple[TagIndex, list[str]]:
            tags = TagIndex()
            for row in db.execute(
                "SELECT digest, size, allocated, source, created_at, labels, whole, owner FROM bases WHERE whole"
            ):
                tags.disks[row[0]] = _base(row)
            for *name, digest, manifest, owner in db.execute(
                "SELECT registry, name, tag, digest, manifest, owner FROM names ORDER BY rowid"
            ):
                reference = Reference(registry=name[0], name=name[1], tag=name[2])
                tags.names[reference] = TagTarget(digest, manifest, owner)
            return tags, [digest for (digest,) in db.execute("SELECT digest FROM bases WHERE NOT whole")]

        return await self._database.transact(work)

    async def announce(self, base: Base) -> None:
        """A base's file is about to get its place."""
        await self._database.transact(lambda db: _put_base(db, base, _HALF))

    async def restore(self, base: Base, names: Mapping[Reference, TagTarget]) -> None:
        """The base is in its place, damaged or not; write down what is known of it, and names that it has besides."""

        def work(db: sqlite3.Connection) -> None:
            _put_base(db, base, _DAMAGED if base.damaged else _WHOLE)
            for name, held in names.items():
                _put_name(db, name, held)

        await self._database.transact(work)

    async def give(self, name: Reference, held: TagTarget) -> None:
        """The base is in its place, and the name stands for it."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE bases SET whole = 1 WHERE digest = ?", (held.digest,))
            _put_name(db, name, held)

        await self._database.transact(work)

    async def take(self, names: Collection[Reference], digest: str | None) -> None:
        """The names stand for nothing any more; the base of `digest` is about to go."""

        def work(db: sqlite3.Connection) -> None:
            rows = [(name.registry, name.name, name.tag) for name in names]
            db.executemany("DELETE FROM names WHERE registry = ? AND name = ? AND tag = ?", rows)
            db.execute("UPDATE bases SET whole = 0 WHERE digest = ?", (digest,))

        await self._database.transact(work)

    async def strike(self, digest: str) -> None:
        """The base's file has gone."""

        def work(db: sqlite3.Connection) -> None:
            # Names go first: after a mishap some may still stand for it.
            db.execute("DELETE FROM names WHERE digest = ?", (digest,))
            db.execute("DELETE FROM bases WHERE digest = ?", (digest,))

        await self._database.transact(work)


def _put_base(db: sqlite3.Connection, base: Base, whole: int) -> None:
    labels = msgspec.json.encode(dict(base.labels)).decode()
    row = (base.digest, base.size, base.allocated, base.source, base.created_at.timestamp(), labels, whole, base.owner)
    db.execute(
        "INSERT INTO bases VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET size = excluded.size,"
        " allocated = excluded.allocated, source = excluded.source, created_at = excluded.created_at,"
        " labels = excluded.labels, whole = excluded.whole, owner = excluded.owner",
        row,
    )


def _put_name(db: sqlite3.Connection, name: Reference, held: TagTarget) -> None:
    row = (name.registry, name.name, name.tag, held.digest, held.manifest, held.owner)
    db.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?, ?)", row)


def _base(row: tuple[Any, ...]) -> Base:
    digest, size, allocated, source, created_at, labels, whole, owner = row
    return Base(
        digest=digest,
        size=size,
        allocated=allocated,
        created_at=datetime.fromtimestamp(created_at, UTC),
        source=source,
        labels=msgspec.json.decode(labels, type=dict[str, str]),
        damaged=whole == _DAMAGED,
        owner=owner,
    )


@asynccontextmanager
async def open_image_database(file: Path) -> AsyncIterator[ImageDatabase]:
    """Open the file, or make it with mode 0600. A damaged one is set aside: `image fsck` makes its rows again.

    Raises: DatabaseNewer, InsufficientResources, Unavailable.
    """
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(open_database(file, SCHEMA, check=True))
        except DatabaseDamaged as error:
            log.warning(
                "the image database is damaged, and is set aside", error=str(error), cure="twinshare image fsck"
            )
            await trio.to_thread.run_sync(_set_aside, file)
            database = await stack.enter_async_context(open_database(file, SCHEMA))
        yield ImageDatabase(database)


def _set_aside(file: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            file.with_name(file.name + suffix).replace(file.with_name(f"{file.name}.damaged{suffix}"))
