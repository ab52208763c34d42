"""How many connections may be open: pure accounting.

Connections that have shown no right to be here (another local user, no valid token yet) share a small part of all
places, so that however many strangers hold theirs open, the node's own user and those with tokens come in.
"""

from __future__ import annotations

from typing import Protocol


class CountedConnection(Protocol):
    """A connection as it is counted: where it comes from, and whether it has shown a right to be here."""

    @property
    def source(self) -> str: ...

    @property
    def is_known(self) -> bool: ...


class ConnectionLimit:
    """The open connections. One source may hold `per_source` of `total`, all strangers together `strangers`."""

    def __init__(self, total: int, per_source: int, strangers: int) -> None:
        self._total, self._per_source, self._strangers = total, per_source, strangers
        self._open: list[CountedConnection] = []

    @property
    def count(self) -> int:
        return len(self._open)

    def take(self, connection: CountedConnection) -> bool:
        """Return whether one more may be opened; if so it is counted until `give`n back."""
        if self.count >= self._total:
            return False
        if sum(one.source == connection.source for one in self._open) >= self._per_source:
            return False
        if not connection.is_known and sum(not one.is_known for one in self._open) >= self._strangers:
            return False
        self._open.append(connection)
        return True

    def give(self, connection: CountedConnection) -> None:
        self._open.remove(connection)
