"""The journal: every mutation is written down before it acts, and survives kill -9.

An operation is idempotent from its first line: after a crash it is run again, or undone. The caller may hang up; the
work goes on. The same idempotency key with the same request is the same operation, for each principal.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Limits, account_of
from ...protocols.errors import (
    DeadlineExceeded,
    ErrorBody,
    IdempotencyMismatch,
    OperationCancelled,
    OperationNotFound,
    Overloaded,
    TwinshareError,
    Unavailable,
)
from ...protocols.events import OperationDone, OperationProgress
from ...protocols.method import Method
from ...protocols.operation import Detached, Operation, OperationState, Progress
from ...protocols.tolerant import known_part
from ..database import PASSING_FAULTS
from ..events import EventLog
from ..files import disk_errors_named
from .active import UNDO, ActiveOperation, Asked
from .decode import decode_request, decode_stored, former_caller
from .keys import plain_key, scoped_key
from .operation import JournalledOperation, Release
from .pace import Pace
from .recovery import find_outdated
from .store import ROLE, SECRETS, JournalStore, Row
from .unwritten import UnwrittenEnds

log = structlog.get_logger(__name__)

Kind: TypeAlias = JournalledOperation[Any]

MAX_RUNNING = 256
UNDO_TIMEOUT = 60.0
"""Seconds that a caller waits for an undo that cannot reach the hypervisor."""
UNDO_RETRY = 0.5
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
        self._ended = ended
        self._kinds = {kind.kind: kind for kind in kinds}
        self._of_method = {(kind.call.name, kind.through_peer): kind for kind in self._kinds.values()}
        self._active: dict[str, ActiveOperation] = {}
        # What the last list has read, with its last change: the same objects again, whose JSON is encoded once.
        self._listed: dict[str, tuple[float, Operation]] = {}
        self._keys: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._pace = Pace()
        self._unwritten = UnwrittenEnds(store)
        nursery.start_soon(self._unwritten.run)
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
            row = await self._store.by_key(key)
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
        if len(self._active) + len(self._unwritten) >= MAX_RUNNING:
            raise Overloaded(f"{MAX_RUNNING} operations are under way; try again later", retry_after=5)
        active = self._make(
            kind, uuid.uuid4().hex, Asked(key=key, target=kind.target(request), caller=caller, request=request)
        )
        release = await self._admit(kind, active, caller, caller.limits)
        self._launch(kind, active, release)
        return active.id

    def _make(self, kind: Kind, id: str, asked: Asked) -> ActiveOperation:
        async def save(active: ActiveOperation) -> None:
            await self._save(active, best_effort=kind.runs_on_full_disk)

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
        """Run one operation to its end. Nothing is raised here but the cancellation of the whole node."""
        active.state = OperationState.RUNNING
        try:
            if active.step_name != UNDO:
                with active.scope:
                    await self._do(kind, active)
            # Neither done nor failed nor cancelled by a caller: the node is stopping, and the next start goes on.
            if active.result is not None or active.error is not None or active.cancel_asked:
                await self._finish(kind, active)
        finally:
            release()
            self._pace.end(account_of(active.principal))
            self._active.pop(active.id, None)
            active.answered.set()
            active.ended.set()

    async def _do(self, kind: Kind, active: ActiveOperation) -> None:
        try:
            with disk_errors_named(f"what {kind.kind} needs"):
                active.result = await kind.do(active)
        except TwinshareError as error:
            active.error = error.to_wire()
        except Exception:
            log.exception("operation failed by a bug", operation=active.id, kind=active.kind)
            active.error = TwinshareError(f"internal error; the node's log tells more under {active.id}").to_wire()

    async def _finish(self, kind: Kind, active: ActiveOperation) -> None:
        outcome = OperationState.DONE
        if active.result is None:
            outcome = OperationState.CANCELLED if active.error is None else OperationState.FAILED
            active.error = active.error or OperationCancelled(f"operation {active.id} was cancelled").to_wire()
            if kind.has_undo() and not await self._undo(kind, active):
                return
        active.state = outcome
        with trio.CancelScope(shield=True):
            await self._unwritten.write(active)
        self._ended(active.view(self._node))
        self._events.publish(active.event(OperationDone), active.principal)

    async def _undo(self, kind: Kind, active: ActiveOperation) -> bool:
        """Return whether all was taken back. Waits for a hypervisor that is away; the caller waits `UNDO_TIMEOUT`.

        Not shielded: what the stop of the node interrupts, or a bug, stays in the journal for the next start.
        """
        active.step_name = UNDO
        with trio.CancelScope(shield=True):
            await self._save(active, best_effort=True)
        deadline = trio.current_time() + UNDO_TIMEOUT
        while True:
            try:
                with disk_errors_named(f"the undo of {kind.kind}"):
                    await kind.undo(active)
                return True
            except (Unavailable, DeadlineExceeded) as error:
                if trio.current_time() >= deadline and not active.answered.is_set():
                    log.warning("cannot undo it yet", operation=active.id, kind=active.kind, error=error.message)
                    active.answered.set()
            except TwinshareError as error:
                log.warning("could not undo all", operation=active.id, kind=active.kind, error=error.message)
                break
            except Exception:
                log.exception("undo failed by a bug", operation=active.id, kind=active.kind)
                break
            await trio.sleep(UNDO_RETRY)
        log.error("an operation is left half undone until the next start", operation=active.id, kind=active.kind)
        return False

    async def _save(self, active: ActiveOperation, *, best_effort: bool = False) -> None:
        try:
            await self._store.update(active)
        except TwinshareError as failure:
            if not best_effort:
                raise
            log.warning("cannot write an operation down", operation=active.id, error=failure.message)

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
            caller = former_caller(row.principal, notes.pop(ROLE, None))
            active = self._make(kind, row.id, Asked(key=row.key, target=row.target, caller=caller, request=request))
            active.step_name, active.created_at, active.notes = row.step, row.created_at, notes
            active.error, active.is_recovered = decode_stored(row.error, ErrorBody), True
            if row.id in outdated:
                await self._give_up(active)
                continue
            log.info("an operation goes on", operation=row.id, kind=row.kind, target=row.target, step=row.step)
            self._pace.begin(row.principal, Limits(), time.monotonic())
            self._launch(kind, active, kind.claim(active))
        await self._store.forget_old()
        await self._store.erase_former_secrets(self._request_of)

    async def _give_up(self, active: ActiveOperation) -> None:
        """End an operation of a former life as it is: not done again, and not undone."""
        log.warning("an outdated operation is not done again", operation=active.id, kind=active.kind)
        active.state = OperationState.FAILED
        active.error = OperationCancelled(
            "how it ended could not be written, and a later operation has followed; not done again"
        ).to_wire()
        await self._unwritten.write(active)
        self._ended(active.view(self._node))
        self._events.publish(active.event(OperationDone), active.principal)

    def _request_of(self, row: Row) -> Any:
        """What was asked; None when this version does not understand it."""
        kind = self._kinds.get(row.kind)
        return decode_request(row, kind) if kind else None

    async def list(self, state: OperationState | None = None) -> list[Operation]:
        """The newest thousand, newest first."""
        if state in {OperationState.PENDING, OperationState.RUNNING}:
            rows = await self._store.newest(state)
            live = [active.view(self._node) for active in self._active.values() if active.state is state]
            # What this version leaves alone: of an unknown kind, or with a request that it cannot read.
            left = [self._view(row) for row in rows if self._live(row.id) is None]
            return sorted([*live, *left], key=lambda operation: operation.created_at, reverse=True)
        rows = await self._store.newest(state)
        known = self._listed
        self._listed = {
            row.id: kept
            if (kept := known.get(row.id)) and kept[0] == row.updated_at
            else (row.updated_at, self._view(row))
            for row in rows
        }
        listed = [(self._live(id), ended) for id, (_, ended) in self._listed.items()]
        return [active.view(self._node) if active else ended for active, ended in listed]

    async def get(self, id: str) -> Operation:
        """Raises: OperationNotFound."""
        if active := self._live(id):
            return active.view(self._node)
        row = await self._store.get(id)
        if row is None:
            raise OperationNotFound(f"no operation '{id}' on this node", operation=id)
        return self._view(row)

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
        )

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
