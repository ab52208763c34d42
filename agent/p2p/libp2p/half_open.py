"""Which connection gives way when too many far sides have not proved who they are.

Refusing newcomers would let one address lock out everybody, itself included; so the oldest of the address that holds
most gives way. A real handshake takes milliseconds and is rarely the oldest.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class HalfOpen(Generic[T]):
    """The half-open connections of each address, oldest first."""

    def __init__(self, *, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._by_address: dict[str, dict[T, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, address: str, connection: T) -> T | None:
        """Returns the connection to close in its place, which is forgotten already."""
        mine = self._by_address.setdefault(address, {})
        mine[connection] = None
        self._count += 1
        if len(mine) > self._most_each:
            return self._oldest(address)
        if self._count > self._most:
            return self._oldest(max(self._by_address, key=lambda each: len(self._by_address[each])))
        return None

    def remove(self, address: str, connection: T) -> None:
        """No error if it has given way already."""
        mine = self._by_address.get(address, {})
        if connection in mine:
            del mine[connection]
            self._count -= 1
            if not mine:
                del self._by_address[address]

    def _oldest(self, address: str) -> T:
        oldest = next(iter(self._by_address[address]))
        self.remove(address, oldest)
        return oldest
