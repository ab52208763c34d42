"""What callers see of operations: those under way, and the rows of those that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from ...protocols.errors import ErrorBody, OperationNotFound
from ...protocols.operation import MAX_LISTED, Operation, OperationState, Progress
from ...protocols.tolerant import known_part
from .active import ActiveOperation
from .decode import decode_stored
from .keys import plain_key
from .operation import JournalledOperation
from .store import TRACE, JournalStore, Row
from .unwritten import UnwrittenEnds


class Listing:
    """`active` are the operations under way by their IDs, `kinds` those that this version knows by their names."""

    def __init__(
        self,
        store: JournalStore,
        unwritten: UnwrittenEnds,
        node: str,
        active: Mapping[str, ActiveOperation],
        kinds: Mapping[str, JournalledOperation[Any]],
    ) -> None:
        self._store, self._unwritten, self._node = store, unwritten, node
        self._active, self._kinds = active, kinds
        # What the last list has read, with its last change: the same objects again, whose JSON is encoded once.
        self._listed: dict[str, tuple[float, Operation]] = {}

    async def get(self, id: str) -> Operation:
        """Raises: OperationNotFound."""
        if active := self._live(id):
            return active.view(self._node)
        row = await self._store.get(id)
        if row is None:
            raise OperationNotFound(f"no operation '{id}' on this node", operation=id)
        return self._view(row)

    def _live(self, id: str) -> ActiveOperation | None:
        """An operation that is newer than its row."""
        return self._active.get(id) or self._unwritten.get(id)

    def _view(self, row: Row) -> Operation:
        kind = self._kinds.get(row.kind)
        return Operation(
            id=row.id,
            kind=row.kind,
            target=row.target,
            node=self._node,
            state=OperationState(known_part(row.state, OperationState)),
            progress=Progress(message=row.step),
            result=decode_stored(row.result, kind.call.result if kind else Any),
            error=decode_stored(row.error, ErrorBody),
            created_at=datetime.fromtimestamp(row.created_at, UTC),
            updated_at=datetime.fromtimestamp(row.updated_at, UTC),
            idempotency_key=plain_key(row.key),
            principal=row.principal,
            traceparent=msgspec.msgpack.decode(row.notes).get(TRACE, UNSET),
        )

    async def list(self, state: OperationState | None = None, until: datetime | None = None) -> list[Operation]:
        """Return the newest `MAX_LISTED`, newest first: of all, or of those made by the time `until`."""
        rows = await self._store.newest(state, until)
        if state in {OperationState.PENDING, OperationState.RUNNING}:
            live = [active.view(self._node) for active in self._active.values() if active.state is state]
            # What this version leaves alone: of an unknown kind, or with a request that it cannot read.
            left = [self._view(row) for row in rows if self._live(row.id) is None]
            asked = [one for one in (*live, *left) if until is None or one.created_at <= until]
            return sorted(asked, key=lambda operation: operation.created_at, reverse=True)[:MAX_LISTED]
        if until is not None:
            return [active.view(self._node) if (active := self._live(row.id)) else self._view(row) for row in rows]
        known = self._listed
        self._listed = {
            row.id: kept
            if (kept := known.get(row.id)) and kept[0] == row.updated_at
            else (row.updated_at, self._view(row))
            for row in rows
        }
        listed = [(self._live(id), ended) for id, (_, ended) in self._listed.items()]
        return [active.view(self._node) if active else ended for active, ended in listed]
