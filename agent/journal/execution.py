"""Runs one operation to its end: it is done or undone, its end is written and published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import structlog
import trio

from ...protocols.errors import DeadlineExceeded, OperationCancelled, TwinshareError, Unavailable
from ...protocols.events import OperationDone
from ...protocols.operation import Operation, OperationState
from ..events import EventLog
from ..files import disk_errors_named
from ..trace import follow_trace
from .active import UNDO, ActiveOperation
from .operation import JournalledOperation
from .store import JournalStore
from .unwritten import UnwrittenEnds

log = structlog.get_logger(__name__)

Kind: TypeAlias = JournalledOperation[Any]

UNDO_TIMEOUT = 60.0
"""Seconds that a caller waits for an undo that cannot reach the hypervisor."""
UNDO_RETRY = 0.5


class Execution:
    """`ended` gets each operation that has ended, `node` is the name of this node."""

    def __init__(
        self,
        store: JournalStore,
        unwritten: UnwrittenEnds,
        events: EventLog,
        node: str,
        ended: Callable[[Operation], object],
    ) -> None:
        self._store, self._unwritten, self._events = store, unwritten, events
        self._node, self._ended = node, ended

    async def run(self, kind: Kind, active: ActiveOperation) -> None:
        """Do it, and end it. Nothing is raised here but the cancellation of the whole node."""
        follow_trace(active.traceparent)
        active.state = OperationState.RUNNING
        if active.step_name != UNDO:
            with active.scope:
                await self._do(kind, active)
        # Neither done nor failed nor cancelled by a caller: the node is stopping, and the next start goes on.
        if active.result is not None or active.error is not None or active.cancel_asked:
            await self._finish(kind, active)

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
        self._announce(active)

    async def _undo(self, kind: Kind, active: ActiveOperation) -> bool:
        """Return whether all was taken back. Waits for a hypervisor that is away; the caller waits `UNDO_TIMEOUT`.

        Not shielded: what the stop of the node interrupts, or a bug, stays in the journal for the next start.
        """
        active.step_name = UNDO
        with trio.CancelScope(shield=True):
            await self.save(active, best_effort=True)
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

    async def save(self, active: ActiveOperation, *, best_effort: bool = False) -> None:
        """Write its row. Raises: TwinshareError, unless it is done without one (`best_effort`)."""
        try:
            await self._store.update(active)
        except TwinshareError as failure:
            if not best_effort:
                raise
            log.warning("cannot write an operation down", operation=active.id, error=failure.message)

    async def give_up(self, active: ActiveOperation) -> None:
        """End an operation of a former life as it is: not done again, and not undone."""
        log.warning("an outdated operation is not done again", operation=active.id, kind=active.kind)
        active.state = OperationState.FAILED
        active.error = OperationCancelled(
            "how it ended could not be written, and a later operation has followed; not done again"
        ).to_wire()
        await self._unwritten.write(active)
        self._announce(active)

    def _announce(self, active: ActiveOperation) -> None:
        self._ended(active.view(self._node))
        self._events.publish(active.event(OperationDone), active.principal)
