"""The journal's rows in the node's database."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from ...protocols.access import account_of
from ...protocols.operation import MAX_LISTED, OperationState
from ...protocols.secrets import secrets_until_end, without_secrets
from ..database import PASSING_FAULTS
from ..disk_reserve import DiskReserve
from ..limits import limits_of
from ..state import State
from .active import ActiveOperation

FORGET_EVERY = 250
"""Operations after which old ones that have ended are looked for."""
MAX_LISTED_RESULT = 8 << 10
"""Bytes of a result that is shown in a list; a longer one is read with its operation alone."""
ROLE, SECRETS, TRACE = "role", "secrets", "traceparent"
"""Notes of a row: the caller's role when the operation was admitted, the keyed hash of the secrets in the request, and
the trace that it belongs to.

The secrets themselves leave the row when the operation has ended (protocols/secrets.py); the hash still tells whether a
repeated request has the same.
"""
_ERASED = "journal secrets erased"
_ENDED = frozenset({OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED})

_COLUMNS = "id, key, kind, target, principal, request, state, step, notes, result, error, created_at, updated_at"
_LISTED_COLUMNS = _COLUMNS.replace("request", "x''").replace(
    "result", f"CASE WHEN length(result) <= {MAX_LISTED_RESULT} THEN result END"
)
_INSERT = f"INSERT INTO operations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - constants
_CHANGED = ("state", "step", "notes", "result", "error", "updated_at", "request")
# What was begun while the disk was full has no row yet. Its key may have been used again since: then it gets none.
_UPSERT = f"{_INSERT.replace('INSERT', 'INSERT OR IGNORE')} ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{column} = excluded.{column}" for column in _CHANGED
)
_SIZES = """
SELECT id, principal, state, length(request) + length(notes) + coalesce(length(result), 0) + coalesce(length(error), 0)
FROM operations ORDER BY created_at DESC, rowid DESC
"""


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
    """Every write is durable when it returns. `key` is what hashes of secrets are made with.

    Raises: InsufficientResources when the disk is full.
    """

    def __init__(self, state: State, reserve: DiskReserve, key: bytes) -> None:
        self._state, self._reserve = state, reserve
        self._key = hashlib.blake2b(b"twinshare journal secrets\0" + key).digest()
        self._inserted = 0

    async def insert(self, active: ActiveOperation, *, makes_room: bool) -> None:
        """Write a new operation. On a full disk one that makes room may use the reserve, and no other is taken."""
        await (self._reserve.make_room() if makes_room else self._reserve.require())
        await self._state.execute(_INSERT, self._row(active))
        self._inserted += 1
        if self._inserted % FORGET_EVERY == 0:
            with suppress(*PASSING_FAULTS):  # the next time will do
                await self.forget_old()

    async def update(self, active: ActiveOperation) -> None:
        active.updated_at = time.time()
        await self._state.execute(_UPSERT, self._row(active))
        if active.state in _ENDED and any(secrets_until_end(active.request)):
            await self._state.erase_deleted()

    async def write_end(self, active: ActiveOperation) -> None:
        """Write an operation that has ended. On a full disk it may use the reserve."""
        await self._reserve.make_room()
        await self.update(active)

    def is_repeated(self, row: Row, kept: msgspec.Struct, request: msgspec.Struct) -> bool:
        """Return whether `request` asks for the same as the row, whose own request is `kept`."""
        if without_secrets(kept, ended=True) != without_secrets(request, ended=True):
            return False
        known = msgspec.msgpack.decode(row.notes).get(SECRETS) or self._hash(kept)
        return hmac.compare_digest(known, self._hash(request))

    def _hash(self, request: msgspec.Struct) -> bytes:
        """The keyed hash of the request's secrets; empty where there are none."""
        secrets = secrets_until_end(request)
        packed = msgspec.msgpack.encode(secrets)
        return hmac.digest(self._key, packed, "sha256") if any(secrets) else b""

    def _row(self, active: ActiveOperation) -> Row:
        pack, ended = msgspec.msgpack.encode, active.state in _ENDED
        secrets = self._hash(active.request)
        notes = {**active.notes, ROLE: active.caller.role, **({SECRETS: secrets} if secrets else {})}
        if active.traceparent:
            notes[TRACE] = active.traceparent
        return Row(
            id=active.id,
            key=active.key,
            kind=active.kind,
            target=active.target,
            principal=active.principal,
            request=pack(without_secrets(active.request, ended=ended)),
            state=str(active.state),
            step=active.step_name,
            notes=pack(notes),
            result=pack(active.result) if active.state is OperationState.DONE else None,
            error=pack(active.error) if active.error else None,
            created_at=active.created_at,
            updated_at=active.updated_at,
        )

    async def by_key(self, key: str) -> Row | None:
        return next(iter(await self._select("WHERE key = ?", key)), None)

    async def get(self, id: str) -> Row | None:
        return next(iter(await self._select("WHERE id = ?", id)), None)

    async def newest(self, state: OperationState | None = None, until: datetime | None = None) -> Sequence[Row]:
        """Return the newest `MAX_LISTED` rows made by the time `until`, newest first.

        They come without their requests, and without results that are large.
        """
        # A row's time has more digits than a `datetime`, which is rounded.
        wanted = {"state = ?": state and str(state), "created_at < ?": until and until.timestamp() + 1e-6}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        order = f"ORDER BY created_at DESC, id DESC LIMIT {MAX_LISTED}"
        return await self._select(f"{where} {order}", *given.values(), columns=_LISTED_COLUMNS)

    async def unfinished(self) -> Sequence[Row]:
        return await self._select("WHERE state IN ('pending', 'running')")

    async def ended_after(self, created_at: float) -> Sequence[Row]:
        """What was asked after a time and has come to its end, done or failed."""
        return await self._select("WHERE state IN ('done', 'failed') AND created_at > ?", created_at)

    async def forget_old(self) -> None:
        """Delete of each account the oldest operations that have ended and are beyond its share."""
        await self._state.transact(_forget_old)

    async def erase_former_secrets(self, read: Callable[[Row], msgspec.Struct | None]) -> None:
        """Take the secrets out of what former versions have ended, once. `read` decodes a row's request."""
        if await self._state.query("SELECT 1 FROM facts WHERE name = ?", (_ERASED,)):
            return
        rows = await self._select("WHERE state IN ('done', 'failed', 'cancelled')")
        changed = []
        for row in rows:
            request = read(row)
            if request is not None and (secrets := self._hash(request)):
                notes = {**msgspec.msgpack.decode(row.notes), SECRETS: secrets}
                kept = msgspec.msgpack.encode(without_secrets(request, ended=True))
                changed.append((kept, msgspec.msgpack.encode(notes), row.id))

        def write(db: sqlite3.Connection) -> None:
            db.executemany("UPDATE operations SET request = ?, notes = ? WHERE id = ?", changed)
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, x'')", (_ERASED,))

        await self._state.transact(write)
        await self._state.erase_deleted()

    async def _select(self, where: str, *values: Any, columns: str = _COLUMNS) -> Sequence[Row]:
        rows = await self._state.query(f"SELECT {columns} FROM operations {where}", values)  # noqa: S608 - constants
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
