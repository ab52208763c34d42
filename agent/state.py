"""The node's database `twinshare.db`: operations, tokens, facts, events, and the tables of the parts above."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

from .database import Database, Schema, open_database

State: TypeAlias = Database

TABLES = """
CREATE TABLE IF NOT EXISTS operations (
    id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, target TEXT NOT NULL, principal TEXT NOT NULL,
    request BLOB NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL, notes BLOB NOT NULL, result BLOB, error BLOB,
    created_at REAL NOT NULL, updated_at REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS operations_by_state ON operations (state, created_at);
CREATE INDEX IF NOT EXISTS operations_by_time ON operations (created_at);
CREATE TABLE IF NOT EXISTS tokens (
    name TEXT PRIMARY KEY, hash BLOB NOT NULL, role TEXT NOT NULL,
    created_at REAL NOT NULL, expires_at REAL, last_used_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS events (id INTEGER PRIMARY KEY, event BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS event_accounts (id INTEGER PRIMARY KEY, account TEXT NOT NULL) STRICT;
"""

MIGRATIONS: tuple[str, ...] = ()
"""Of the whole file, the tables of the parts above included: it has one number."""


def open_state(file: Path, tables: Iterable[str] = ()) -> AbstractAsyncContextManager[State]:
    """Open or create the file (mode 0600); `tables` are those of other parts.

    Raises: DatabaseRefused, InsufficientResources, Unavailable.
    """
    return open_database(file, Schema("\n".join((TABLES, *tables)), MIGRATIONS))
