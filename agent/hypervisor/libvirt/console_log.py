"""Limits the size of what guests print on their serial consoles, and of what the libvirt daemon says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

from .. import log_size
from .fsuid import as_fs_user


async def limit_logs(logs: Callable[[], Iterable[Path]], user: str | None) -> None:
    """Check every `CHECKED_EVERY` seconds; never returns. `user` owns the logs."""
    while True:
        await trio.sleep(log_size.CHECKED_EVERY)
        await trio.to_thread.run_sync(_truncate_all, list(logs()), user)


def _truncate_all(logs: Iterable[Path], user: str | None) -> None:
    for log in logs:
        # Not started yet, deleted meanwhile, or not accessible.
        with suppress(OSError), as_fs_user(user, log.parent) as folder:
            log_size.truncate(folder / log.name)
