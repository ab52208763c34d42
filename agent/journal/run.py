"""One operation at work, and the recipe that says how one is done."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import trio

from ...protocols.errors import ErrorBody
from ...protocols.operation import Operation, OperationState, Progress

PROGRESS_INTERVAL = 0.2

Release = Callable[[], None]
UNDO = "undo"


class Journal(Protocol):
    """Where a run writes down how far it is."""

    async def save(self, run: Run, *, patiently: bool = False) -> None: ...

    def tell(self, type: str, run: Run) -> None: ...


class Run:
    """One operation at work: what a recipe gets."""

    def __init__(
        self, journal: Journal, id: str, key: str, kind: str, target: str, principal: str, request: Any
    ) -> None:
        self.id, self.key, self.principal = id, key, principal
        self.kind, self.target, self.request = kind, target, request
        self.state = OperationState.PENDING
        self.step_name = ""
        # What the recipe must find again after a crash; written down with each step.
        self.notes: dict[str, Any] = {}
        self.frees = False
        self.progress = Progress()
        self.result: Any = None
        self.error: ErrorBody | None = None
        self.created_at = self.updated_at = time.time()
        # The caller waits for the first; both are one moment, but where what was done cannot be taken back yet.
        self.answered, self.ended = trio.Event(), trio.Event()
        self.scope = trio.CancelScope()
        self.cancel_asked = False
        self._journal = journal
        self._told_at = 0.0

    async def step(self, name: str, **notes: Any) -> None:
        """Write down that the work has come to `name`. What was done before is durable by then."""
        self.step_name = name
        self.notes |= notes
        await self._journal.save(self, patiently=self.frees)
        self.report(Progress(done=self.progress.done + 1, unit="steps", message=name))

    def report(self, progress: Progress) -> None:
        """Tell listeners how far it is, a few times a second at the most."""
        self.progress = progress
        now = time.monotonic()
        if now - self._told_at >= PROGRESS_INTERVAL:
            self._told_at = now
            self._journal.tell("op.progress", self)

    def view(self, node: str) -> Operation:
        return Operation(
            id=self.id,
            kind=self.kind,
            target=self.target,
            node=node,
            state=self.state,
            progress=self.progress,
            result=self.result,
            error=self.error,
            created_at=datetime.fromtimestamp(self.created_at, UTC),
            updated_at=datetime.fromtimestamp(self.updated_at, UTC),
            idempotency_key=self.key,
            principal=self.principal,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one kind of operation is done. `request` is the type of what it was asked, `result` of what it answers.

    `do` runs again after a crash and finds what it did before. `undo` takes back what `do` did, however far it came.
    `claim` takes again, at once and without waiting, what `admit` had claimed before the crash.
    """

    request: Any
    result: Any
    do: Callable[[Run], Awaitable[Any]]
    undo: Callable[[Run], Awaitable[None]] | None = None
    claim: Callable[[Run], Release] | None = None
    # It makes room: on a full disk it goes on although it cannot be written down, or nobody could ever delete a VM.
    frees: bool = False


def nothing_claimed() -> None:
    """The release of an operation that claims nothing."""
