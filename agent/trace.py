"""The trace that a task works for: it is in each line of its log, and goes along with its operations and calls."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from structlog.contextvars import bind_contextvars

from ..protocols.trace import trace_fields

_TRACE: Final[ContextVar[str]] = ContextVar("traceparent", default="")


def follow_trace(traceparent: str) -> None:
    """Work for a trace from now on, with all tasks that this one starts; "" changes nothing."""
    if traceparent:
        _TRACE.set(traceparent)
        bind_contextvars(**trace_fields(traceparent))


def current_trace() -> str:
    """Return the `traceparent` that this task works for, or ""."""
    return _TRACE.get()
