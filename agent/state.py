"""The node's SQLite file: what is small and changes. One connection, in one worker thread; every write is durable.

Raises `InsufficientResources` when the disk is full: nothing was written then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from ..protocols.errors import InsufficientResources

Result = TypeVar("Result")

SCHEMA = """
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, target TEXT NOT NULL, principal TEXT NOT NULL,
    request BLOB NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, notes BLOB NOT NULL, result BLOB, error BLOB,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS operations_by_state ON operations (state, created_at);
CREATE TABLE IF NOT EXISTS tokens (
    name TEXT PRIMARY KEY, hash BLOB NOT NULL, role TEXT NOT NULL,
    created_at REAL NOT NULL, expires_at REAL, last_used_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, event BLOB NOT NULL) STRICT;
"""


class State:
    """The open file. All statements run in order in one thread, so a transaction is never interleaved."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._one_thread = trio.CapacityLimiter(1)

    async def transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `work` as one durable transaction; it is rolled back when it raises.

        Not interrupted by cancellation once it has begun: the caller always learns what was written.
        Raises: InsufficientResources when the disk is full, and what `work` raises.
        """

        def run() -> Result:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return work(self._connection)

        try:
            return await trio.to_thread.run_sync(run, limiter=self._one_thread)
        except sqlite3.OperationalError as error:
            if "full" in str(error) or "disk I/O" in str(error):
                raise InsufficientResources(f"the disk of the node is full: {error}") from None
            raise

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """One durable statement. Raises: InsufficientResources when the disk is full."""
        await self.transact(lambda db: db.execute(statement, values) and None)

    async def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows that a SELECT finds."""

        def run() -> list[tuple[Any, ...]]:
            return self._connection.execute(statement, values).fetchall()

        return await trio.to_thread.run_sync(run, limiter=self._one_thread)

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._connection.close, limiter=self._one_thread)


@asynccontextmanager
async def open_state(file: Path, schemas: Iterable[str] = ()) -> AsyncIterator[State]:
    """Open or create the file (mode 0600); `schemas` are further tables of other rooms."""

    def connect() -> sqlite3.Connection:
        file.touch(mode=0o600)
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        for schema in (SCHEMA, *schemas):
            connection.executescript(schema)
        return connection

    state = State(await trio.to_thread.run_sync(connect))
    try:
        yield state
    finally:
        await state.close()
