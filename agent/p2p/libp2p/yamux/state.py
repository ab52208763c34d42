"""What a session knows of one stream: windows, unread bytes, which directions are over.

Only the session changes it; a shell reads `readable`, `writable` and `broken` to decide whether to wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

INITIAL_WINDOW: Final = 256 * 1024
"""Bytes that each side may send on a new stream; the protocol fixes it."""


_KEPT: Final = 4096


class Unread:
    """What has arrived of a stream and was not read, in pieces as they came."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: deque[bytearray | memoryview] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, piece: memoryview) -> None:
        """Keep a piece: as it is when it is most of what it is a view of, which stays in memory with it."""
        self._size += len(piece)
        if len(piece) >= _KEPT and type(piece.obj) is bytes and len(piece) * 2 >= len(piece.obj):
            self._parts.append(piece)
        elif self._parts and isinstance(last := self._parts[-1], bytearray) and len(last) < _KEPT:
            last += piece
        else:
            self._parts.append(bytearray(piece))

    def take(self, most: int | None = None) -> bytes:
        """Remove and return `most` bytes, or all there are."""
        if most is None or most >= self._size:
            data = b"".join(self._parts)
            self.clear()
            return data
        taken: list[bytearray | memoryview] = []
        left = most
        while left:
            part = self._parts.popleft()
            if len(part) > left:
                rest = memoryview(part)
                self._parts.appendleft(rest[left:])
                part = rest[:left]
            taken.append(part)
            left -= len(part)
        self._size -= most
        return b"".join(taken)

    def clear(self) -> None:
        """Forget all of it."""
        self._parts.clear()
        self._size = 0


@dataclass(eq=False, slots=True)
class StreamState:
    """`send_credit`: bytes that we may send. `receive_credit`: bytes that the far side may still send.

    `window` is the receive window that we aim at; `unacknowledged` what the reader took since the last credit update.
    """

    id: int
    outbound: bool
    send_credit: int = INITIAL_WINDOW
    receive_credit: int = INITIAL_WINDOW
    window: int = INITIAL_WINDOW
    unacknowledged: int = 0
    unread: Unread = field(default_factory=Unread)
    read_ended: bool = False  # the far side sent its end
    write_ended: bool = False  # we sent ours
    broken: bool = False  # reset by the far side, or the connection is over
    closed: bool = False  # we are done with both directions

    @property
    def readable(self) -> bool:
        """A read returns or raises at once."""
        return bool(self.unread) or self.read_ended or self.broken or self.closed

    @property
    def over(self) -> bool:
        """No further frame can matter to this stream."""
        return self.closed or self.broken or (self.read_ended and self.write_ended)
