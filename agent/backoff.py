"""Exponential backoff with jitter: the delays between the retries of one thing."""

from __future__ import annotations

import random

_RANDOM = random.Random()  # noqa: S311 - it spreads retries in time


class Backoff:
    """Delays that double from `first` to `longest` seconds; it waits for nothing and reads no clock.

    Each delay is drawn from `1 - jitter` to `1 + jitter` times its length, so that many nodes do not retry in step.
    An attempt that worked for `steady` seconds before it failed starts the delays anew.
    """

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        jitter: float = 0.5,
        steady: float | None = None,
        rng: random.Random = _RANDOM,
    ) -> None:
        self._first, self._longest, self._jitter, self._steady, self._rng = first, longest, jitter, steady, rng
        self.failures = 0
        """Attempts that failed since the start or the last reset."""

    def next(self, worked_for: float = 0.0, *, longest: float | None = None) -> float:
        """Count a failed attempt and return the seconds to wait before the next one.

        `worked_for`: seconds for which the attempt worked before it failed. `longest` lowers the bound for this delay.
        """
        if self._steady is not None and worked_for >= self._steady:
            self.reset()
        delay = self._first
        for _ in range(self.failures):
            delay *= 2
            if delay >= self._longest:
                break
        self.failures += 1
        bound = self._longest if longest is None else min(longest, self._longest)
        return min(delay, bound) * self._rng.uniform(1 - self._jitter, 1 + self._jitter)

    def reset(self) -> None:
        """Start with the first delay again, after a success."""
        self.failures = 0
