"""Limits the size of the serial consoles' logs: whatever a guest prints ends in a file of the node.

QEMU appends to the log, so it can be truncated while QEMU writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from .fsuid import as_fs_user

MAX_LOG_SIZE = 8 << 20
KEPT_SIZE = 1 << 20
_INTERVAL = 10.0


async def limit_console_logs(consoles: Callable[[], Iterable[Path]], user: str | None) -> None:
    """Check every 10 s; never returns. The logs lie beside the sockets `consoles`; `user` owns them."""
    while True:
        await trio.sleep(_INTERVAL)
        await trio.to_thread.run_sync(_truncate_all, [path.with_name("tty.log") for path in consoles()], user)


def _truncate_all(logs: Iterable[Path], user: str | None) -> None:
    for log in logs:
        # Not started yet, deleted meanwhile, or not accessible.
        with suppress(OSError), as_fs_user(user, log.parent) as folder:
            truncate(folder / log.name)


def truncate(log: Path) -> None:
    """Keep the last part of a log that has grown too long. Raises: OSError."""
    if log.lstat().st_size <= MAX_LOG_SIZE:
        return
    file = os.open(log, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        kept = os.pread(file, KEPT_SIZE, os.fstat(file).st_size - KEPT_SIZE)
        os.ftruncate(file, 0)
        os.write(file, kept)
    finally:
        os.close(file)
