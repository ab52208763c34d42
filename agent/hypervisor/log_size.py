"""Limits the size of a log that another process appends to, so that it can be truncated meanwhile."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import trio

MAX_LOG_SIZE = 8 << 20
KEPT_SIZE = 1 << 20
CHECKED_EVERY = 10.0
"""Seconds between two looks at a log."""


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


async def limit_log(log: Path) -> None:
    """Keep a log of the agent's own user short; never returns."""
    while True:
        with suppress(OSError):
            await trio.to_thread.run_sync(truncate, log)
        await trio.sleep(CHECKED_EVERY)
