"""Where the mesh keeps what must outlive the agent: small values under a kind and a key."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol, TypeAlias

SCHEMA = """
CREATE TABLE IF NOT EXISTS mesh (
    kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;
"""


Value: TypeAlias = tuple[str, str, bytes]
"""A kind, a key and a value."""
_AT_ONCE = 256
"""Values in one statement of SQL."""


class KeyValueStore(Protocol):
    """A value is durable when `put` returns. Raises: InsufficientResources when the disk is full."""

    async def load(self, kind: str) -> dict[str, bytes]: ...

    async def put(self, kind: str, key: str, value: bytes) -> None: ...

    async def put_all(self, values: Sequence[Value]) -> None:
        """Put many in few durable writes, each of which is done or not."""
        ...

    async def drop(self, kind: str, key: str) -> None: ...

    async def drop_all(self, keys: Sequence[tuple[str, str]]) -> None:
        """Drop many in few durable writes."""
        ...


class MemoryKeyValueStore:
    """A store in memory; hand it to the next life of a node in a simulation."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, bytes]] = {}

    async def load(self, kind: str) -> dict[str, bytes]:
        return dict(self._values.get(kind, {}))

    async def put(self, kind: str, key: str, value: bytes) -> None:
        self._values.setdefault(kind, {})[key] = value

    async def put_all(self, values: Sequence[Value]) -> None:
        for kind, key, value in values:
            await self.put(kind, key, value)

    async def drop(self, kind: str, key: str) -> None:
        self._values.get(kind, {}).pop(key, None)

    async def drop_all(self, keys: Sequence[tuple[str, str]]) -> None:
        for kind, key in keys:
            await self.drop(kind, key)


class Statements(Protocol):
    """The part of `State` that a store needs."""

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> None: ...

    async def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...


class DatabaseKeyValueStore:
    """A store in the node's database, which was opened with `SCHEMA`."""

    def __init__(self, state: Statements) -> None:
        self._state = state

    async def load(self, kind: str) -> dict[str, bytes]:
        rows = await self._state.query("SELECT key, value FROM mesh WHERE kind = ?", (kind,))
        return dict(rows)

    async def put(self, kind: str, key: str, value: bytes) -> None:
        await self._state.execute("INSERT OR REPLACE INTO mesh VALUES (?, ?, ?)", (kind, key, value))

    async def put_all(self, values: Sequence[Value]) -> None:
        for start in range(0, len(values), _AT_ONCE):
            part = values[start : start + _AT_ONCE]
            places = ", ".join(["(?, ?, ?)"] * len(part))
            statement = f"INSERT OR REPLACE INTO mesh VALUES {places}"  # noqa: S608 - of constants
            await self._state.execute(statement, list(chain.from_iterable(part)))

    async def drop(self, kind: str, key: str) -> None:
        await self.drop_all([(kind, key)])

    async def drop_all(self, keys: Sequence[tuple[str, str]]) -> None:
        for start in range(0, len(keys), _AT_ONCE):
            part = keys[start : start + _AT_ONCE]
            places = ", ".join(["(?, ?)"] * len(part))
            statement = f"DELETE FROM mesh WHERE (kind, key) IN (VALUES {places})"  # noqa: S608 - of constants
            await self._state.execute(statement, list(chain.from_iterable(part)))
