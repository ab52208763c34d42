"""Keep the machine's own addresses out of reach inside, while they come and go."""

from __future__ import annotations

import json

from .addresses import ADDRESSES, changes, unreachable
from .keeping import Keeping
from .start import finish, program, start


class Fence:
    """The destinations out of reach inside, kept true while the machine's addresses come and go."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self.problem: str | None = None

    async def keep(self) -> None:
        """For ever."""
        with changes(ADDRESSES) as changed:
            while True:
                await self._update()
                await changed()

    async def _update(self) -> None:
        wanted, present = unreachable(), frozenset(self._keeping.record.fenced)
        orders = {"add": sorted(wanted - present), "remove": sorted(present - wanted)}
        if not any(orders.values()):
            return
        command = program("fence", [str(self._keeping.pid), json.dumps(orders)])
        try:
            code = await finish(start(command, output=self._keeping.log, errors=self._keeping.log))
        except OSError as error:
            code = error.errno or 1
        if code == 0:
            self._keeping.fenced(wanted)
        self.problem = (
            None if code == 0 else "Guests may reach this machine by its own addresses; enclosure.log says why."
        )
