"""The journal's rows in the node's database."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ...protocols.operation import OperationState
from ..state import State
from .active import ActiveOperation

KEPT = 10_000
"""Operations that are remembered; of the others only those that have not ended."""
LISTED = 1000
ROLE = "role"
"""The note that every row has: the role of the caller when the operation was admitted."""

_COLUMNS = "id, key, kind, target, principal, request, state, step, notes, result, error, created_at, updated_at"
_INSERT = f"INSERT INTO operations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
_UPDATE = "UPDATE operations SET state = ?, step = ?, notes = ?, result = ?, error = ?, updated_at = ? WHERE id = ?"
_FORGET = (
    "DELETE FROM operations WHERE state IN ('done', 'failed', 'cancelled') AND id NOT IN "
    "(SELECT id FROM operations ORDER BY created_at DESC LIMIT ?)"
)


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

    async def insert(self, active: ActiveOperation) -> None:
        await self._state.execute(_INSERT, _row(active))

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
        """Delete the oldest operations that have ended."""
        await self._state.execute(_FORGET, (KEPT,))

    async def _select(self, where: str, *values: Any) -> Sequence[Row]:
        rows = await self._state.query(f"SELECT {_COLUMNS} FROM operations {where}", values)  # noqa: S608 - constants
        return [Row(*row) for row in rows]


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
