"""How much a guest may send that is no output: a flood of frames would take the agent's CPU from all other guests."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ...protocols.guest_channel import MAX_MESSAGE, WINDOW, GuestMisbehaved

MOST = 4 << 20
"""Bytes that may come at once."""
PER_SECOND = 512 << 10
LEAST = 256
"""What a frame counts at least, however short it is."""
PER_STREAM = MAX_MESSAGE + WINDOW
"""What each stream that is opened adds: its answer, and output that is under way when it is dropped."""


class Allowance:
    """Acknowledgements, answers, reports and frames of streams that are no more are charged here; input earns."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._left = float(MOST)
        self._at = clock()

    def earn(self, size: float) -> None:
        """The guest may answer to `size` bytes more."""
        self._left = min(self._left + size, MOST)

    def spend(self, size: int) -> None:
        """A frame of `size` bytes has come. Raises: GuestMisbehaved."""
        now = self._clock()
        self.earn((now - self._at) * PER_SECOND)
        self._at = now
        self._left -= max(size, LEAST)
        if self._left < 0:
            raise GuestMisbehaved("the guest sends more than anybody has asked for")
