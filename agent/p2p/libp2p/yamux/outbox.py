"""The frames that wait to be written: always whole, never more than a far side can make us hold."""

from __future__ import annotations

from typing import Final

from .frame import ProtocolError

HIGH_WATER: Final = 256 * 1024
"""Bytes beyond which no more data is accepted; answers and credit still are."""
MAX_ANSWERS: Final = 1024 * 1024
"""Bytes of answers to a far side that asks and does not read."""


class Outbox:
    """Frames in the order in which they go out."""

    def __init__(self) -> None:
        self._context: list[bytes] = []
        self._size = 0
        self._answers = 0

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_room(self) -> bool:
        return self._size < HIGH_WATER

    def put(self, part: bytes) -> None:
        self._context.append(part)
        self._size += len(part)

    def answer(self, frame: bytes) -> None:
        """Put what the far side made us say. Raises: ProtocolError when it made us say too much."""
        self._answers += len(frame)
        if self._answers > MAX_ANSWERS:
            raise ProtocolError("the peer asks without reading the answers")
        self.put(frame)

    def take(self) -> bytes:
        """All of it; the box is empty afterwards."""
        output = b"".join(self._context)
        self._context.clear()
        self._size = self._answers = 0
        return output
