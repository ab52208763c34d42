"""When a request is sent again: one rule for the asynchronous and the blocking client."""

from __future__ import annotations

import time

from ..agent.backoff import Backoff
from ..protocols.errors import TwinshareError, Unavailable
from .exchange import NodeUnreachable

RETURN_WITHIN = 10.0
"""Seconds that a node which was there may be away: an agent that is killed is back in two."""


class RetryWindow:
    """The delays between the attempts of one request: 0.1, 0.2, 0.4… up to 2 s, until RETURN_WITHIN is over."""

    def __init__(self) -> None:
        self._ends_at = time.monotonic() + RETURN_WITHIN
        self._backoff = Backoff(0.1, 2.0, jitter=0)

    def next(self) -> float | None:
        """Return the seconds to wait before one more attempt; None when there is no time for one."""
        delay = self._backoff.next()
        return delay if time.monotonic() + delay <= self._ends_at else None


class RetryPolicy:
    """The retry rule of one client. A node that never answered fails at once; one that did is given time to return.

    Each mutation carries its idempotency key in every try, so that it happens once.
    """

    def __init__(self) -> None:
        self._node_answered = False

    def record_answer(self) -> None:
        self._node_answered = True

    def delay_before_retry(self, error: TwinshareError, window: RetryWindow, *, repeatable: bool = True) -> float:
        """Return the seconds to wait before the request is sent again. Raises: `error` when it must not be."""
        reason = error.reason if isinstance(error, NodeUnreachable) else "protocol"
        if reason == "lost" and not repeatable:
            raise error from None
        self._node_answered = self._node_answered or reason == "lost"
        # What is missing for longer has a class of its own: HypervisorDown, P2pStopped, Overloaded.
        stopping = type(error) is Unavailable
        delay = window.next() if self._node_answered and (stopping or reason != "protocol") else None
        if delay is None:
            raise error from None
        return delay
