"""Long-running work, as its caller sees it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from .errors import ErrorBody

OperationId = Annotated[str, Meta(min_length=1, max_length=64)]
Instant = Annotated[datetime, Meta(tz=True)]
MAX_LISTED = 1000
"""Operations that a list has at most; `until` reads on."""


class OperationState(StrEnum):
    """`pending` is in the journal and has not begun; `done`, `failed` and `cancelled` are final.

    `unknown` is a state that a later version of twinshare wrote.
    """

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        return self in {OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED}


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the work is. `total` is None while it is not known; `unit` is `steps`, `bytes`…"""

    done: int = 0
    total: int | None = None
    unit: str = "steps"
    message: str = ""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One mutation: `kind` is the method that was called, `target` what it works on, `result` what it returned.

    `traceparent` is that of the request which began it, if it had one.
    """

    id: str
    kind: str
    target: str
    node: str
    state: OperationState
    progress: Progress
    result: Any = None
    error: ErrorBody | None = None
    created_at: datetime
    updated_at: datetime
    idempotency_key: str
    principal: str = "local"
    traceparent: str | UnsetType = UNSET


class Detached(Exception):
    """Raised in place of a result when the caller asked to detach; carries the operation that goes on."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation.id)
        self.operation = operation
