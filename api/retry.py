"""When a request is sent again: one rule for the asynchronous and the blocking client."""

from __future__ import annotations

import time

from ..protocols.errors import TwinshareError, Unavailable
from .exchange import NodeUnreachable

RETURN_WITHIN = 10.0
"""Seconds that a node which was there may be away: an agent that is killed is back in two."""


class Backoff:
    """The pauses between tries, in seconds: 0.1, 0.2, 0.4… up to 2, until RETURN_WITHIN is over."""

    def __init__(self) -> None:
        self._ends_at = time.monotonic() + RETURN_WITHIN
        self._next = 0.1

    def next(self) -> float | None:
        """Return the pause before one more try; None when there is no time for one."""
        pause, self._next = self._next, min(2 * self._next, 2.0)
        return pause if time.monotonic() + pause <= self._ends_at else None


class RetryPolicy:
    """The retry rule of one client. A node that never answered fails at once; one that did is given time to return.

    Each mutation carries its idempotency key in every try, so that it happens once.
    """

    def __init__(self) -> None:
        self._node_answered = False

    def record_answer(self) -> None:
        self._node_answered = True

    def pause_before_retry(self, error: TwinshareError, backoff: Backoff) -> float:
        """Return the seconds to wait before the request is sent again. Raises: `error` when it must not be."""
        reason = error.reason if isinstance(error, NodeUnreachable) else "protocol"
        self._node_answered = self._node_answered or reason == "lost"
        # What is missing for longer has a class of its own: HypervisorDown, P2pStopped, Overloaded.
        stopping = type(error) is Unavailable
        pause = backoff.next() if self._node_answered and (stopping or reason != "protocol") else None
        if pause is None:
            raise error from None
        return pause
