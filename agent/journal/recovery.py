"""Which operations of a former life of the agent are outdated, so that doing them again would do harm.

An operation whose end could not be written is still `running` on the disk. Doing it again would, for example, stop a VM
that somebody has started since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .operation import JournalledOperation
from .store import JournalStore, Row


async def find_outdated(
    store: JournalStore, rows: Sequence[Row], kind_of: Callable[[str], JournalledOperation[Any] | None]
) -> set[str]:
    """Return the IDs of those rows whose operation has ended: later ones have had the lock of the same VM since."""
    if not rows:
        return set()
    ended = await store.ended_after(min(row.created_at for row in rows))
    followed: dict[str, float] = {}
    for row in ended:
        if locked := _locked(row, kind_of(row.kind)):
            followed[locked] = max(row.created_at, followed.get(locked, 0.0))
    return {row.id for row in rows if followed.get(_locked(row, kind_of(row.kind)), 0.0) > row.created_at}


def _locked(row: Row, kind: JournalledOperation[Any] | None) -> str:
    return kind.locks(row.key, msgspec.msgpack.decode(row.notes)) if kind else ""
