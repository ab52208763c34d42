"""Keep the log of each serial console short: what a guest prints ends in a file of ours, and it may print for ever.

QEMU appends to the log, so it can be cut while QEMU writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from .acting import acting_as

LONGEST = 8 << 20
KEPT = 1 << 20
_INTERVAL = 10.0


async def keep_logs_short(consoles: Callable[[], Iterable[Path]], user: str | None) -> None:
    """For ever. `consoles` are the sockets beside which the logs lie; `user` is the one who owns them."""
    while True:
        await trio.sleep(_INTERVAL)
        await trio.to_thread.run_sync(_cut_all, [path.with_name("tty.log") for path in consoles()], user)


def _cut_all(logs: Iterable[Path], user: str | None) -> None:
    for log in logs:
        # Not started yet, deleted meanwhile, or not ours to touch.
        with suppress(OSError), acting_as(user, log.parent) as folder:
            cut(folder / log.name)


def cut(log: Path) -> None:
    """Leave the last part of a log that has grown too long. Raises: OSError."""
    if log.lstat().st_size <= LONGEST:
        return
    file = os.open(log, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kept = os.pread(file, KEPT, os.fstat(file).st_size - KEPT)
        os.ftruncate(file, 0)
        os.write(file, kept)
    finally:
        os.close(file)
