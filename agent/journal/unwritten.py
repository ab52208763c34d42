"""Operations that have ended and whose end could not be written: they are kept until the database can be written.

Without this an operation would stay `running` on the disk, and the next start of the agent would do it again.
"""

from __future__ import annotations

import structlog
import trio

from ..database import PASSING_FAULTS
from .active import ActiveOperation
from .store import JournalStore

log = structlog.get_logger(__name__)

RETRY_EVERY = 1.0


class UnwrittenEnds:
    """The ends that wait for the database. Not bounded here: the journal begins nothing while too many wait."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._waiting: dict[str, ActiveOperation] = {}
        self._wake = trio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, id: str) -> ActiveOperation | None:
        return self._waiting.get(id)

    async def write(self, active: ActiveOperation) -> None:
        """Write the end of an operation, now or as soon as that can be done."""
        self._waiting[active.id] = active
        if not await self._write(active):
            self._wake.set()

    async def write_all(self) -> None:
        """Write what waits, the oldest first, as far as the database can be written."""
        for active in list(self._waiting.values()):
            if not await self._write(active):
                return

    async def _write(self, active: ActiveOperation) -> bool:
        try:
            await self._store.write_end(active)
        except PASSING_FAULTS as failure:
            log.warning("the end of an operation waits to be written", operation=active.id, error=failure.message)
            return False
        self._waiting.pop(active.id, None)
        return True

    async def run(self) -> None:
        """Try again until all is written. Never returns."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                await trio.sleep(RETRY_EVERY)
                await self.write_all()
