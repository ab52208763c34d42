"""The journal: every mutation is written down before it acts, and survives kill -9.

An operation is idempotent from its first line: after a crash it is run again, or undone. The caller may hang up; the
work goes on. The same idempotency key with the same request is the same operation, for each principal.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Limits, account_of
from ...protocols.errors import (
    ErrorBody,
    IdempotencyMismatch,
    Overloaded,
    TwinshareError,
    Unavailable,
)
from ...protocols.events import OperationProgress
from ...protocols.method import Method
from ...protocols.operation import Detached, Operation, OperationState
from ..database import PASSING_FAULTS
from ..events import EventLog
from ..limits import has_no_place
from .active import ActiveOperation, Asked
from .decode import decode_request, decode_stored, former_caller
from .execution import Execution, Kind
from .keys import plain_key, scoped_key
from .listing import Listing
from .operation import Release
from .pace import Pace
from .recovery import find_outdated
from .store import ROLE, SECRETS, TRACE, JournalStore, Row
from .unwritten import UnwrittenEnds

log = structlog.get_logger(__name__)

MAX_RUNNING = 256
CLOSE_TIMEOUT = 8.0


class Journal:
    """Made by `open_journal`. `close_timeout` is how long, in seconds, closing waits for operations under way."""

    def __init__(
        self,
        store: JournalStore,
        events: EventLog,
        node: str,
        ended: Callable[[Operation], object],
        kinds: Iterable[Kind],
        nursery: trio.Nursery,
    ) -> None:
        self.close_timeout = CLOSE_TIMEOUT
        self._store, self._events, self._node, self._nursery = store, events, node, nursery
        self._kinds = {kind.kind: kind for kind in kinds}
        self._of_method = {(kind.call.name, kind.through_peer): kind for kind in self._kinds.values()}
        self._active: dict[str, ActiveOperation] = {}
        self._keys: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._pace = Pace()
        self._unwritten = UnwrittenEnds(store)
        nursery.start_soon(self._unwritten.run)
        self._execution = Execution(store, self._unwritten, events, node, ended)
        self._listing = Listing(store, self._unwritten, node, self._active, self._kinds)
        self._closing = False

    async def run(
        self, caller: Caller, method: Method, arguments: Mapping[str, Any], *, through_peer: bool = False
    ) -> Any:
        """Carry out a journalled method, or find it done under its key, and return its result.

        Raises: IdempotencyMismatch, Detached when the caller does not wait, and what the operation raises.
        """
        kind = self._of_method[method.name, through_peer]
        request = kind.request_type()(**arguments)
        key = scoped_key(caller)
        # One lock a key: the same request that arrives twice at once must not be refused by its own claims.
        async with self._keys.setdefault(key, trio.Lock()):
            # A key of our own making is new: its caller waits once less for the thread of the database.
            row = await self._store.by_key(key) if caller.idempotency_key else None
            id = self._repeated(row, kind, request) if row else await self._begin(kind, key, request, caller)
        return await self._answer(id, detach=caller.detach)

    async def former_request(self, caller: Caller) -> Any:
        """What the caller's idempotency key was used for; None for a new key, and where this version cannot read it."""
        row = await self._store.by_key(scoped_key(caller)) if caller.idempotency_key else None
        kind = self._kinds.get(row.kind) if row else None
        return decode_request(row, kind) if row and kind else None

    def _repeated(self, row: Row, kind: Kind, request: Any) -> str:
        """The id of the operation that this request repeats. Compared is what was asked, not how it is written."""
        kept = decode_request(row, kind) if row.kind == kind.kind else None
        if kept is None or not self._store.is_repeated(row, kept, request):
            raise IdempotencyMismatch(
                "this idempotency key was used for another request; use a new key", key=plain_key(row.key)
            )
        return row.id

    async def _begin(self, kind: Kind, key: str, request: Any, caller: Caller) -> str:
        if self._closing:
            raise Unavailable("the node is stopping; try again when it is back")
        own = self._pace.under_way(account_of(caller.principal))
        if has_no_place(MAX_RUNNING, len(self._active) + len(self._unwritten), own):
            raise Overloaded(f"{MAX_RUNNING} operations are under way; try again later", retry_after=5)
        active = self._make(
            kind, uuid.uuid4().hex, Asked(key=key, target=kind.target(request), caller=caller, request=request)
        )
        release = await self._admit(kind, active, caller, caller.limits)
        self._launch(kind, active, release)
        return active.id

    def _make(self, kind: Kind, id: str, asked: Asked) -> ActiveOperation:
        async def save(active: ActiveOperation) -> None:
            await self._execution.save(active, best_effort=kind.runs_on_full_disk)

        def publish(active: ActiveOperation) -> None:
            self._events.publish(active.event(OperationProgress), active.principal)

        return ActiveOperation(id, kind.kind, asked, save=save, publish=publish)

    async def _admit(self, kind: Kind, active: ActiveOperation, caller: Caller, limits: Limits) -> Release:
        """Count it, let its class admit it, and write it down. What was counted and claimed is given back on errors."""
        self._pace.begin(account_of(active.principal), limits, time.monotonic())
        try:
            release = await kind.admit(active, caller)
            try:
                with trio.CancelScope(shield=True):
                    await self._insert(kind, active)
            except BaseException:
                release()
                raise
        except BaseException:
            self._pace.end(account_of(active.principal))
            raise
        return release

    async def _insert(self, kind: Kind, active: ActiveOperation) -> None:
        try:
            await self._store.insert(active, makes_room=kind.runs_on_full_disk)
        except PASSING_FAULTS as error:
            if not kind.runs_on_full_disk:
                raise
            log.warning("an operation runs without the journal", kind=kind.kind, error=error.message)

    def _launch(self, kind: Kind, active: ActiveOperation, release: Release) -> None:
        self._active[active.id] = active
        name = f"operation {active.kind} {active.target}"
        self._nursery.start_soon(self._execute, kind, active, release, name=name)

    async def _answer(self, id: str, *, detach: bool) -> Any:
        active = self._active.get(id)
        if detach:
            raise Detached(active.view(self._node) if active else await self.get(id))
        if active is None:
            return _outcome(await self.get(id))
        await active.answered.wait()
        return _outcome(active.view(self._node))

    async def _execute(self, kind: Kind, active: ActiveOperation, release: Release) -> None:
        try:
            await self._execution.run(kind, active)
        finally:
            release()
            self._pace.end(account_of(active.principal))
            self._active.pop(active.id, None)
            active.answered.set()
            active.ended.set()

    async def recover(self) -> None:
        """Go on with what a former life of the agent left under way. Claims are taken before this returns.

        An operation of a kind, or with a request, that this version does not know is left as it is.
        """
        rows = await self._store.unfinished()
        outdated = await find_outdated(self._store, rows, self._kinds.get)
        for row in rows:
            kind, request = self._kinds.get(row.kind), self._request_of(row)
            if kind is None or request is None:
                log.warning("an operation of another version is left alone", operation=row.id, kind=row.kind)
                continue
            notes = msgspec.msgpack.decode(row.notes)
            notes.pop(SECRETS, None)
            traceparent = notes.pop(TRACE, "")
            caller = former_caller(row.principal, notes.pop(ROLE, None))
            active = self._make(kind, row.id, Asked(key=row.key, target=row.target, caller=caller, request=request))
            active.step_name, active.created_at, active.notes = row.step, row.created_at, notes
            active.traceparent = traceparent
            active.error, active.is_recovered = decode_stored(row.error, ErrorBody), True
            if row.id in outdated:
                await self._execution.give_up(active)
                continue
            log.info("an operation goes on", operation=row.id, kind=row.kind, target=row.target, step=row.step)
            self._pace.begin(row.principal, Limits(), time.monotonic())
            self._launch(kind, active, kind.claim(active))
        await self._store.forget_old()
        await self._store.erase_former_secrets(self._request_of)

    def _request_of(self, row: Row) -> Any:
        """What was asked; None when this version does not understand it."""
        kind = self._kinds.get(row.kind)
        return decode_request(row, kind) if kind else None

    async def list(self, state: OperationState | None = None, until: datetime | None = None) -> list[Operation]:
        """Return the newest `MAX_LISTED`, newest first: of all, or of those made by the time `until`."""
        return await self._listing.list(state, until)

    async def get(self, id: str) -> Operation:
        """Raises: OperationNotFound."""
        return await self._listing.get(id)

    async def wait(self, id: str, timeout: float) -> Operation:
        """The operation when it has ended, or after `timeout` seconds. Raises: OperationNotFound."""
        if active := self._active.get(id):
            with trio.move_on_after(timeout):
                await active.ended.wait()
            return active.view(self._node)
        return await self.get(id)

    async def cancel(self, id: str) -> Operation:
        """Cancel and undo an operation, and wait until that is done. Raises: OperationNotFound."""
        if active := self._active.get(id):
            active.cancel_asked = True
            active.scope.cancel()
            await active.answered.wait()
        return await self.get(id)

    async def close(self) -> None:
        """Refuse new operations, wait for those under way for `close_timeout`, leave the rest to the next start."""
        self._closing = True
        with trio.move_on_after(self.close_timeout):
            for active in list(self._active.values()):
                await active.ended.wait()
        await self._unwritten.write_all()


def _outcome(operation: Operation) -> Any:
    if operation.state is OperationState.DONE:
        return operation.result
    if operation.error is None:
        raise Unavailable("the node stopped while the operation was under way; it goes on when the node is back")
    raise TwinshareError.from_wire(operation.error)


@asynccontextmanager
async def open_journal(
    store: JournalStore, events: EventLog, node: str, ended: Callable[[Operation], object], kinds: Iterable[Kind]
) -> AsyncIterator[Journal]:
    """The node's journal. What has not ended when this closes goes on at the next start.

    `kinds` are the operations that it runs; `ended` gets each operation that has ended.
    """
    async with trio.open_nursery() as nursery:
        journal = Journal(store, events, node, ended, kinds, nursery)
        try:
            yield journal
        finally:
            with trio.CancelScope(shield=True):
                await journal.close()
            nursery.cancel_scope.cancel()
