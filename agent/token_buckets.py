"""Token buckets: pure accounting, time is an argument."""

from __future__ import annotations

from collections import OrderedDict


class TokenBuckets:
    """One token bucket per key: `burst` tokens at most, `rate` of them come back each second.

    At most `keys` buckets are kept; the ones unused for the longest are forgotten, which only fills them.
    """

    def __init__(self, rate: float, burst: float, keys: int = 10_000) -> None:
        self.rate = rate
        self.burst = burst
        self._keys = keys
        self._state: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens; 0 when they were there, else the seconds after which they will be."""
        tokens = self.left(key, now)
        short = cost - tokens
        self._keep(key, tokens if short > 0 else tokens - cost, now)
        return max(0.0, short / self.rate)

    def fine(self, key: str, now: float, cost: float) -> None:
        """Take up to `cost` tokens, as many as there are."""
        self._keep(key, max(0.0, self.left(key, now) - cost), now)

    def left(self, key: str, now: float) -> float:
        """Return the tokens that a key has."""
        tokens, then = self._state.get(key, (self.burst, now))
        return min(self.burst, tokens + (now - then) * self.rate)

    def _keep(self, key: str, tokens: float, now: float) -> None:
        self._state[key] = (tokens, now)
        self._state.move_to_end(key)
        if len(self._state) > self._keys:
            self._state.popitem(last=False)
