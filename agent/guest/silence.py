"""Notices that the program in a guest is gone while streams wait for it: no byte of the channel would say so."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from ...protocols.errors import TwinshareError

SILENCE_FIRST, SILENCE_LONGEST = 2.0, 30.0
"""Seconds without a byte of a guest that has streams, after which it is looked whether its program is still there."""

IsOpen = Callable[[], Awaitable[bool]]


class SilenceWatch:
    """`is_open` asks the hypervisor whether a process in the guest has the channel open; `on_gone` is called if not.

    `has_streams` says whether anybody waits for the guest.
    """

    def __init__(self, is_open: IsOpen, has_streams: Callable[[], bool], on_gone: Callable[[], None]) -> None:
        self._ask, self._has_streams, self._on_gone = is_open, has_streams, on_gone
        self._added = trio.Event()
        self._heard_at = -math.inf

    def heard(self) -> None:
        """The guest has sent something."""
        self._heard_at = trio.current_time()

    def stream_added(self) -> None:
        self._added.set()

    async def run(self) -> None:
        """Look while there are streams. Never returns.

        The program has to be gone twice: QEMU says so, too, in the moment in which it goes on from a file.
        """
        silence, gone = SILENCE_FIRST, False
        while True:
            added = self._added = trio.Event()
            if not self._has_streams():
                await added.wait()
                silence = SILENCE_FIRST
            looked_at = trio.current_time()
            wakes = added if silence > SILENCE_FIRST else trio.Event()
            with trio.move_on_after(silence):
                await wakes.wait()
            if self._heard_at >= looked_at or wakes.is_set():
                silence, gone = SILENCE_FIRST, False
            elif await self._is_open():
                silence, gone = min(silence * 2, SILENCE_LONGEST), False
            elif not gone:
                silence, gone = SILENCE_FIRST, True
            else:
                gone = False
                self._on_gone()

    async def _is_open(self) -> bool:
        try:
            return await self._ask()
        except TwinshareError:
            return True  # nobody knows
