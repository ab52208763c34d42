"""Things that happened, as they are told to whoever listens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `id` grows by one within a node's life and goes on after a restart; a listener resumes after it."""

    id: int
    type: str
    at: datetime
    data: dict[str, Any] = {}
