"""Rate limits of operations for each principal: counters, whose clock is an argument."""

from __future__ import annotations

from collections import deque

from ...protocols.access import Limits
from ...protocols.errors import RateLimited

MINUTE = 60.0


class Pace:
    """How many operations each principal began in the last minute and has under way. Time is an argument (seconds)."""

    def __init__(self) -> None:
        self._begun: dict[str, deque[float]] = {}
        self._under_way: dict[str, int] = {}

    def begin(self, principal: str, limits: Limits, now: float) -> None:
        """Count one. Raises: RateLimited, with the seconds after which to try again."""
        begun = self._begun.setdefault(principal, deque())
        while begun and now - begun[0] >= MINUTE:
            begun.popleft()
        if limits.operations_per_minute is not None and len(begun) >= limits.operations_per_minute:
            wait = int(MINUTE - (now - begun[0])) + 1 if begun else int(MINUTE)
            raise RateLimited(f"{limits.operations_per_minute} operations a minute are allowed", retry_after=wait)
        at_once = self._under_way.get(principal, 0)
        if limits.operations_at_once is not None and at_once >= limits.operations_at_once:
            raise RateLimited(f"{limits.operations_at_once} operations at once are allowed", retry_after=1)
        begun.append(now)
        self._under_way[principal] = at_once + 1

    def under_way(self, principal: str) -> int:
        """Return how many operations a principal has under way."""
        return self._under_way.get(principal, 0)

    def end(self, principal: str) -> None:
        """One has ended; what nobody needs is forgotten."""
        left = self._under_way.pop(principal, 1) - 1
        if left > 0:
            self._under_way[principal] = left
