"""The journal: every mutation is written down before it acts, and survives kill -9.

A recipe is idempotent from its first line: after a crash it is simply run again (`resumes`), or undone. The caller may
hang up; the work goes on. The same idempotency key with the same request is the same operation, for ever.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
import trio

from ...protocols.access import Caller, Limits
from ...protocols.errors import (
    DeadlineExceeded,
    ErrorBody,
    IdempotencyMismatch,
    InsufficientResources,
    OperationCancelled,
    OperationNotFound,
    Overloaded,
    TwinshareError,
    Unavailable,
)
from ...protocols.operation import Detached, Operation, OperationState, Progress
from ..events import EventLog
from ..state import State
from .pace import Pace
from .run import UNDO, Recipe, Release, Run, nothing_claimed

log = structlog.get_logger(__name__)

MAX_RUNNING = 256
KEPT = 10_000
UNDO_PATIENCE = 60.0
UNDO_RETRY = 0.5
CLOSE_PATIENCE = 8.0
_COLUMNS = "id, key, kind, target, principal, request, state, step, notes, result, error, created_at, updated_at"
_UPDATE = "UPDATE operations SET state = ?, step = ?, notes = ?, result = ?, error = ?, updated_at = ? WHERE id = ?"

Admit = Callable[[Run], Awaitable[Release]]


class Operations:
    """Made by `open_operations`. `recipes` must be complete before `recover`.

    `patience` is how long, in seconds, closing waits for work that is under way.
    """

    def __init__(
        self, state: State, events: EventLog, node: str, ended: Callable[[Operation], object], nursery: trio.Nursery
    ) -> None:
        self.recipes: dict[str, Recipe] = {}
        self._state, self._events, self._node, self._nursery = state, events, node, nursery
        self._ended = ended
        self._running: dict[str, Run] = {}
        self._keys: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        self._pace = Pace()
        self._closing = False
        self.patience = CLOSE_PATIENCE

    async def run(self, caller: Caller, kind: str, target: str, request: Any, admit: Admit) -> Any:
        """Do it, or find it done, and answer with its result.

        `admit` refuses what can be refused before anything is written, puts what it found into the run's notes, and
        claims what must not be given twice; what it returns gives the claims back when the operation has ended.
        Raises: IdempotencyMismatch, Detached when the caller does not wait, and whatever `admit` and the recipe raise.
        """
        key = caller.idempotency_key or uuid.uuid4().hex
        packed = msgspec.msgpack.encode(request)
        # One lock a key: the same request that arrives twice at once must not be refused by its own claims.
        async with self._keys.setdefault(key, trio.Lock()):
            known = await self._known(key)
            if known is None:
                run = Run(self, uuid.uuid4().hex, key, kind, target, caller.principal, request)
                known = await self._begin(run, packed, admit, caller.limits)
        if known[:3] != (kind, target, packed):
            raise IdempotencyMismatch("this idempotency key was used for another request; use a new key", key=key)
        return await self._answer(known[3], detach=caller.detach)

    async def _begin(self, run: Run, packed: bytes, admit: Admit, limits: Limits) -> tuple[str, str, bytes, str]:
        if self._closing:
            raise Unavailable("the node is stopping; try again when it is back")
        if len(self._running) >= MAX_RUNNING:
            raise Overloaded(f"{MAX_RUNNING} operations are under way; try again later", retry_after=5)
        self._pace.begin(run.principal, limits, time.monotonic())
        try:
            release = await admit(run)
        except BaseException:
            self._pace.end(run.principal)
            raise
        try:
            with trio.CancelScope(shield=True):
                await self._write_down(run, packed)
        except BaseException:
            release()
            self._pace.end(run.principal)
            raise
        self._launch(run, release)
        return run.kind, run.target, packed, run.id

    def _launch(self, run: Run, release: Release) -> None:
        self._running[run.id] = run
        self._nursery.start_soon(self._work, run, release, name=f"operation {run.kind} {run.target}")

    async def _known(self, key: str) -> tuple[str, str, bytes, str] | None:
        rows = await self._state.query("SELECT kind, target, request, id FROM operations WHERE key = ?", (key,))
        return (rows[0][0], rows[0][1], rows[0][2], rows[0][3]) if rows else None

    async def _answer(self, id: str, *, detach: bool) -> Any:
        run = self._running.get(id)
        if detach:
            raise Detached(run.view(self._node) if run else await self.get(id))
        if run is None:
            return self._outcome(await self.get(id))
        await run.answered.wait()
        return self._outcome(run.view(self._node))

    @staticmethod
    def _outcome(operation: Operation) -> Any:
        if operation.state is OperationState.DONE:
            return operation.result
        if operation.error is None:
            raise Unavailable("the node stopped while the operation was under way; it goes on when the node is back")
        raise TwinshareError.from_wire(operation.error)

    async def _work(self, run: Run, release: Release) -> None:
        """One operation from beginning to end. Nothing leaves this function but the cancellation of the whole node."""
        recipe = self.recipes[run.kind]
        run.state = OperationState.RUNNING
        try:
            if run.step_name != UNDO:
                with run.scope:
                    await self._do(run, recipe)
            # Neither done nor refused nor cancelled by somebody: the node is stopping, the next start goes on.
            if run.result is not None or run.error is not None or run.cancel_asked:
                await self._finish(run, recipe)
        finally:
            release()
            self._pace.end(run.principal)
            self._running.pop(run.id, None)
            run.answered.set()
            run.ended.set()

    async def _do(self, run: Run, recipe: Recipe) -> None:
        try:
            run.result = await recipe.do(run)
        except TwinshareError as error:
            run.error = error.to_wire()
        except Exception:
            log.exception("operation failed by a bug", operation=run.id, kind=run.kind)
            run.error = TwinshareError(f"internal error; the node's log tells more under {run.id}").to_wire()

    async def _finish(self, run: Run, recipe: Recipe) -> None:
        outcome = OperationState.DONE
        if run.result is None:
            outcome = OperationState.CANCELLED if run.error is None else OperationState.FAILED
            run.error = run.error or OperationCancelled(f"operation {run.id} was cancelled").to_wire()
            if recipe.undo is not None and not await self._undo(run, recipe.undo):
                return
        run.state = outcome
        with trio.CancelScope(shield=True):
            await self.save(run, patiently=True)
        self._ended(run.view(self._node))
        self.tell("op.done", run)

    async def _undo(self, run: Run, undo: Callable[[Run], Awaitable[None]]) -> bool:
        """Whether all was taken back. It waits for a hypervisor that is away, its caller no longer than a minute.

        Not shielded: what the stop of the node interrupts, or a bug, the journal keeps, and the next start undoes it.
        """
        run.step_name = UNDO
        with trio.CancelScope(shield=True):
            await self.save(run, patiently=True)
        patience = trio.current_time() + UNDO_PATIENCE
        while True:
            try:
                await undo(run)
                return True
            except (Unavailable, DeadlineExceeded) as error:
                if trio.current_time() >= patience and not run.answered.is_set():
                    log.warning("cannot undo it yet", operation=run.id, kind=run.kind, error=error.message)
                    run.answered.set()
            except TwinshareError as error:
                log.warning("could not undo all", operation=run.id, kind=run.kind, error=error.message)
                break
            except Exception:
                log.exception("undo failed by a bug", operation=run.id, kind=run.kind)
                break
            await trio.sleep(UNDO_RETRY)
        log.error("an operation is left half undone until the next start", operation=run.id, kind=run.kind)
        return False

    def tell(self, type: str, run: Run) -> None:
        progress = msgspec.to_builtins(run.progress)
        data = {"id": run.id, "kind": run.kind, "target": run.target, "state": str(run.state), "progress": progress}
        if run.error is not None:
            data["error"] = msgspec.to_builtins(run.error)
        self._events.publish(type, data)

    async def recover(self) -> None:
        """Take up what a former life of the agent left behind. Claims are taken before this returns."""
        rows = await self._state.query(f"SELECT {_COLUMNS} FROM operations WHERE state IN ('pending', 'running')")  # noqa: S608 - constant
        for row in rows:
            recipe = self.recipes[row[2]]
            run = Run(self, row[0], row[1], row[2], row[3], row[4], msgspec.msgpack.decode(row[5], type=recipe.request))
            run.step_name, run.created_at = row[7], row[11]
            run.notes = msgspec.msgpack.decode(row[8])
            run.error = msgspec.msgpack.decode(row[10], type=ErrorBody) if row[10] else None
            log.info(
                "taking up an operation again", operation=run.id, kind=run.kind, target=run.target, step=run.step_name
            )
            self._launch(run, recipe.claim(run) if recipe.claim else nothing_claimed)
        await self._state.execute(
            "DELETE FROM operations WHERE state IN ('done', 'failed', 'cancelled') AND id NOT IN "
            "(SELECT id FROM operations ORDER BY created_at DESC LIMIT ?)",
            (KEPT,),
        )

    async def list(self, state: OperationState | None = None) -> list[Operation]:
        """The newest thousand, newest first."""
        where, values = ("WHERE state = ?", (str(state),)) if state else ("", ())
        if state is not None and not state.ended:
            live = [run.view(self._node) for run in self._running.values() if run.state is state]
            return sorted(live, key=lambda operation: operation.created_at, reverse=True)
        query = f"SELECT {_COLUMNS} FROM operations {where} ORDER BY created_at DESC LIMIT 1000"  # noqa: S608 - constants
        rows = await self._state.query(query, values)
        return [run.view(self._node) if (run := self._running.get(row[0])) else self._view(row) for row in rows]

    async def get(self, id: str) -> Operation:
        """Raises: OperationNotFound."""
        if run := self._running.get(id):
            return run.view(self._node)
        rows = await self._state.query(f"SELECT {_COLUMNS} FROM operations WHERE id = ?", (id,))  # noqa: S608 - constant
        if not rows:
            raise OperationNotFound(f"no operation '{id}' on this node", operation=id)
        return self._view(rows[0])

    async def wait(self, id: str, timeout: float) -> Operation:
        """How it is when it has ended, or after `timeout` seconds. Raises: OperationNotFound."""
        if run := self._running.get(id):
            with trio.move_on_after(timeout):
                await run.ended.wait()
            return run.view(self._node)
        return await self.get(id)

    async def cancel(self, id: str) -> Operation:
        """Ask it to stop and undo, and wait until it has. Raises: OperationNotFound."""
        if run := self._running.get(id):
            run.cancel_asked = True
            run.scope.cancel()
            await run.answered.wait()
        return await self.get(id)

    async def _write_down(self, run: Run, packed: bytes) -> None:
        run.frees = self.recipes[run.kind].frees
        try:
            await self._insert(run, packed)
        except InsufficientResources as error:
            if not run.frees:
                raise
            log.warning("an operation that makes room runs without the journal", kind=run.kind, error=error.message)

    async def _insert(self, run: Run, packed: bytes) -> None:
        await self._state.execute(
            f"INSERT INTO operations ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, '', ?, NULL, NULL, ?, ?)",  # noqa: S608 - constant
            (
                run.id,
                run.key,
                run.kind,
                run.target,
                run.principal,
                packed,
                str(run.state),
                msgspec.msgpack.encode(run.notes),
                run.created_at,
                run.updated_at,
            ),
        )

    async def save(self, run: Run, *, patiently: bool = False) -> None:
        run.updated_at = time.time()
        result = msgspec.msgpack.encode(run.result) if run.state is OperationState.DONE else None
        error = msgspec.msgpack.encode(run.error) if run.error else None
        notes = msgspec.msgpack.encode(run.notes)
        values = (str(run.state), run.step_name, notes, result, error, run.updated_at, run.id)
        try:
            await self._state.execute(_UPDATE, values)
        except TwinshareError as failure:
            if not patiently:
                raise
            # The disk is full: the outcome is known in memory; a restart would only find it again.
            log.warning("cannot write down an outcome", operation=run.id, error=failure.message)

    def _view(self, row: tuple[Any, ...]) -> Operation:
        id_, key, kind, target, principal, _, state, step, _, result, error, created_at, updated_at = row
        return Operation(
            id=id_,
            kind=kind,
            target=target,
            node=self._node,
            state=OperationState(state),
            progress=Progress(message=step),
            result=msgspec.msgpack.decode(result, type=self.recipes[kind].result) if result else None,
            error=msgspec.msgpack.decode(error, type=ErrorBody) if error else None,
            created_at=datetime.fromtimestamp(created_at, UTC),
            updated_at=datetime.fromtimestamp(updated_at, UTC),
            idempotency_key=key,
            principal=principal,
        )

    async def close(self) -> None:
        """Refuse new work, give running work a while to end, leave the rest to the next start."""
        self._closing = True
        with trio.move_on_after(self.patience):
            for run in list(self._running.values()):
                await run.ended.wait()


@asynccontextmanager
async def open_operations(
    state: State, events: EventLog, node: str, ended: Callable[[Operation], object]
) -> AsyncIterator[Operations]:
    """The node's journal. Work that has not ended when this closes is taken up by the next start.

    `ended` is told each operation that has ended, in this life or taken up from a former one.
    """
    async with trio.open_nursery() as nursery:
        operations = Operations(state, events, node, ended, nursery)
        try:
            yield operations
        finally:
            with trio.CancelScope(shield=True):
                await operations.close()
            nursery.cancel_scope.cancel()
