"""How many connections may be open: pure accounting."""

from __future__ import annotations

from collections import Counter


class ConnectionLimit:
    """How many connections are open, in all and by source."""

    def __init__(self, total: int, per_source: int) -> None:
        self._total = total
        self._per_source = per_source
        self._open: Counter[str] = Counter()
        self.count = 0

    def take(self, source: str) -> bool:
        """Whether one more may be opened; if so it is counted until `give`n back."""
        if self.count >= self._total or self._open[source] >= self._per_source:
            return False
        self.count += 1
        self._open[source] += 1
        return True

    def give(self, source: str) -> None:
        self.count -= 1
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]
