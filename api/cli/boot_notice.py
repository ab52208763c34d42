"""Says on stderr that a command waits for a guest to boot, while its request waits at the node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...protocols.errors import TwinshareError
from .node import connect
from .output import say

NOTICE_AFTER = 1.5
"""Seconds for which nobody wonders."""


@contextmanager
def boot_notice(vm: str, peer: str | None) -> Iterator[None]:
    """Ask whether the guest boots when the block takes longer than a moment, and say so."""
    ended = threading.Event()

    def notice() -> None:
        with suppress(TwinshareError), connect() as client:
            if client.call("show_guest", {"vm": vm}, peer).booting and not ended.is_set():
                say(f"waiting for the guest of '{vm}' to boot")

    timer = threading.Timer(NOTICE_AFTER, notice)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        ended.set()
        timer.cancel()
