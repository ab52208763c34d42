"""The events that are kept: the newest of each account within its share, so that nobody's push out another's."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..protocols.events import Event
from .limits import limits_of

MAX_ROWS = 16_384
MAX_SIZE = 8 << 20
"""Rows and bytes of all accounts together; beyond them whoever has most loses its oldest."""
_CONTAINERS = (dict, list)
VALUE_SIZE = 64
"""Bytes of memory that a value takes, however short it is: an empty map of one byte becomes an object."""


def count_values(data: Any) -> int:
    """Return how many values are in plain data, itself not counted; 4 ms for the most that a message can hold."""
    count, level = 0, [data]
    while level:
        inside = list(chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level))
        count += len(inside)
        level = [each for each in inside if isinstance(each, _CONTAINERS)]
    return count


def memory_of(event: Event, packed: bytes) -> int:
    """Return about how many bytes an event takes in memory."""
    return len(packed) + VALUE_SIZE * count_values(event.data)


class KeptEvents:
    """Events by their numbers, in order. Sizes are in bytes of memory."""

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._accounts: dict[str, deque[tuple[int, int]]] = {}
        self._sizes: Counter[str] = Counter()
        self.last_id = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events.values())

    def after(self, number: int) -> list[Event]:
        """Return what is kept after an event."""
        return [event for event in self._events.values() if event.id > number]

    def add(self, event: Event, account: str, size: int) -> list[int]:
        """Keep a newer event; return the numbers of those that gave way: its own, if it is larger than the share."""
        share = limits_of(account).event_log
        self.last_id = event.id
        if size > share.size:
            return [event.id]
        self._events[event.id] = event
        self._accounts.setdefault(account, deque()).append((event.id, size))
        self._sizes[account] += size
        dropped = []
        while len(self._accounts[account]) > share.rows or self._sizes[account] > share.size:
            dropped.append(self._drop_oldest(account))
        while len(self._events) > MAX_ROWS or self._sizes.total() > MAX_SIZE:
            dropped.append(self._drop_oldest(max(self._sizes, key=self._sizes.__getitem__)))
        return dropped

    def _drop_oldest(self, account: str) -> int:
        number, size = self._accounts[account].popleft()
        del self._events[number]
        self._sizes[account] -= size
        if not self._accounts[account]:
            del self._accounts[account], self._sizes[account]
        return number
