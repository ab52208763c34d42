"""The journal's rows in the node's database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from ...protocols.access import account_of
from ...protocols.operation import OperationState
from ..database import PASSING_FAULTS
from ..limits import limits_of
from ..state import State
from .active import ActiveOperation

FORGET_EVERY = 250
"""Operations after which old ones that have ended are looked for."""
LISTED = 1000
ROLE = "role"
"""The note that every row has: the role of the caller when the operation was admitted."""

_COLUMNS = "id, key, kind, target, principal, request, state, step, notes, result, error, created_at, updated_at"
_INSERT = f"INSERT INTO operations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
_UPDATE = "UPDATE operations SET state = ?, step = ?, notes = ?, result = ?, error = ?, updated_at = ? WHERE id = ?"
_SIZES = """
SELECT id, principal, state, length(request) + length(notes) + coalesce(length(result), 0) + coalesce(length(error), 0)
FROM operations ORDER BY created_at DESC, rowid DESC
"""
_ENDED = frozenset({OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED})


class Row(NamedTuple):
    """One operation as it is written: msgpack in `request`, `notes`, `result` and `error`; times since the epoch."""

    id: str
    key: str
    kind: str
    target: str
    principal: str
    request: bytes
    state: str
    step: str
    notes: bytes
    result: bytes | None
    error: bytes | None
    created_at: float
    updated_at: float


class JournalStore:
    """Every write is durable when it returns. Raises: InsufficientResources when the disk is full."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._inserted = 0

    async def insert(self, active: ActiveOperation) -> None:
        await self._state.execute(_INSERT, _row(active))
        self._inserted += 1
        if self._inserted % FORGET_EVERY == 0:
            with suppress(*PASSING_FAULTS):  # the next time will do
                await self.forget_old()

    async def update(self, active: ActiveOperation) -> None:
        active.updated_at = time.time()
        row = _row(active)
        await self._state.execute(
            _UPDATE, (row.state, row.step, row.notes, row.result, row.error, row.updated_at, row.id)
        )

    async def by_key(self, key: str) -> Row | None:
        return next(iter(await self._select("WHERE key = ?", key)), None)

    async def get(self, id: str) -> Row | None:
        return next(iter(await self._select("WHERE id = ?", id)), None)

    async def newest(self, state: OperationState | None = None) -> Sequence[Row]:
        """The newest `LISTED` rows, newest first."""
        if state is None:
            return await self._select(f"ORDER BY created_at DESC LIMIT {LISTED}")
        return await self._select(f"WHERE state = ? ORDER BY created_at DESC LIMIT {LISTED}", str(state))

    async def unfinished(self) -> Sequence[Row]:
        return await self._select("WHERE state IN ('pending', 'running')")

    async def forget_old(self) -> None:
        """Delete of each account the oldest operations that have ended and are beyond its share."""
        await self._state.transact(_forget_old)

    async def _select(self, where: str, *values: Any) -> Sequence[Row]:
        rows = await self._state.query(f"SELECT {_COLUMNS} FROM operations {where}", values)  # noqa: S608 - constants
        return [Row(*row) for row in rows]


def _forget_old(db: sqlite3.Connection) -> None:
    used: dict[str, tuple[int, int]] = {}
    old = []
    for id, principal, state, size in db.execute(_SIZES):
        account = account_of(principal)
        share = limits_of(account).journal
        rows, bytes_ = used.get(account, (0, 0))
        used[account] = rows + 1, bytes_ + size
        if (rows >= share.rows or bytes_ + size > share.size) and state in _ENDED:
            old.append((id,))
    db.executemany("DELETE FROM operations WHERE id = ?", old)


def _row(active: ActiveOperation) -> Row:
    pack = msgspec.msgpack.encode
    return Row(
        id=active.id,
        key=active.key,
        kind=active.kind,
        target=active.target,
        principal=active.principal,
        request=pack(active.request),
        state=str(active.state),
        step=active.step_name,
        notes=pack({**active.notes, ROLE: active.caller.role}),
        result=pack(active.result) if active.state is OperationState.DONE else None,
        error=pack(active.error) if active.error else None,
        created_at=active.created_at,
        updated_at=active.updated_at,
    )
