"""One operation under way: what it was asked, how far it is, and what it must find again after a crash."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import trio
from msgspec import UNSET

from ...protocols.access import Caller, is_peer
from ...protocols.errors import ErrorBody
from ...protocols.events import OperationEvent
from ...protocols.operation import Operation, OperationState, Progress
from ..trace import current_trace
from .keys import plain_key

PROGRESS_INTERVAL = 0.2
"""Seconds between two progress events of one operation, at least."""

UNDO = "undo"
"""The step of an operation that is being taken back."""

Save = Callable[["ActiveOperation"], Awaitable[None]]
Publish = Callable[["ActiveOperation"], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What an operation was asked. `request` is the Struct of the method's arguments, `key` the idempotency key."""

    key: str
    target: str
    caller: Caller
    request: Any


class ActiveOperation:
    """What the methods of an operation's class get.

    `request` is what was asked, as the Struct of the method's arguments. `notes` are written down with each step, for
    the time after a crash. `caller` is who asked, by its principal and role. `save` writes this operation's row,
    `publish` tells listeners of its progress. `is_recovered` says that a former life of the agent began it.
    """

    def __init__(self, id: str, kind: str, asked: Asked, *, save: Save, publish: Publish) -> None:
        self.id, self.key, caller = id, asked.key, asked.caller
        # Of the caller no more than what is known after a crash as well.
        self.caller = Caller(principal=caller.principal, role=caller.role, from_peer=is_peer(caller.principal))
        self.kind, self.target, self.request = kind, asked.target, asked.request
        self.traceparent = current_trace()
        self.state = OperationState.PENDING
        self.step_name = ""
        self.notes: dict[str, Any] = {}
        self.progress = Progress()
        self.result: Any = None
        self.error: ErrorBody | None = None
        self.created_at = self.updated_at = time.time()
        # The caller waits for `answered`. It is set before `ended` only where an undo waits for a hypervisor.
        self.answered, self.ended = trio.Event(), trio.Event()
        self.scope = trio.CancelScope()
        self.cancel_asked = False
        self.is_recovered = False
        self._save, self._publish = save, publish
        self._published_at = 0.0

    @property
    def principal(self) -> str:
        """Who began it, and owns what it makes."""
        return self.caller.principal

    async def step(self, name: str, **notes: Any) -> None:
        """Write down that the work has come to the step `name`; what was done before is durable when this returns."""
        self.step_name = name
        self.notes |= notes
        await self._save(self)
        self.report(Progress(done=self.progress.done + 1, unit="steps", message=name))

    def report(self, progress: Progress) -> None:
        """Publish the progress, once in `PROGRESS_INTERVAL` at most."""
        self.progress = progress
        now = time.monotonic()
        if now - self._published_at >= PROGRESS_INTERVAL:
            self._published_at = now
            self._publish(self)

    def event(self, kind: type[OperationEvent]) -> OperationEvent:
        """What listeners get of the operation as it is now."""
        return kind(
            id=self.id,
            kind=self.kind,
            target=self.target,
            state=self.state,
            progress=self.progress,
            error=self.error,
            traceparent=self.traceparent,
        )

    def view(self, node: str) -> Operation:
        """The operation as callers see it; `node` is the name of this node."""
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
            idempotency_key=plain_key(self.key),
            principal=self.principal,
            traceparent=self.traceparent or UNSET,
        )
