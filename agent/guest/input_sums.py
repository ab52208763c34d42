"""The CRC-32 of the input of a file at the ends of its frames, which a guest has to some of them."""

from __future__ import annotations

from collections import deque
from zlib import crc32

from ...protocols.guest_channel import GuestMisbehaved


class InputSums:
    """`offset` bytes of input, whose CRC-32 is `total`, are in the guest already."""

    def __init__(self, offset: int, total: int) -> None:
        self._taken = self._end = (offset, total)
        self._frames: deque[tuple[int, int]] = deque()

    def sent(self, content: bytes) -> int:
        """The CRC-32 with `content`, which is sent next."""
        self._end = self._end[0] + len(content), crc32(content, self._end[1])
        self._frames.append(self._end)
        return self._end[1]

    def taken(self, offset: int) -> None:
        """The guest has the input before `offset`. Raises: GuestMisbehaved when that is in the middle of a frame."""
        while self._frames and self._frames[0][0] <= offset:
            self._taken = self._frames.popleft()
        if self._taken[0] != offset:
            raise GuestMisbehaved("a frame of content is acknowledged in its middle")

    def rewind(self) -> None:
        """What the guest does not have is sent again."""
        self._end = self._taken
        self._frames.clear()
