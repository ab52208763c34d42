"""What all parts of a node stand on."""

from __future__ import annotations

from dataclasses import dataclass

from .audit.log import AuditLog
from .backends import Backends
from .config import Config
from .disk_reserve import DiskReserve
from .events import EventLog
from .home import Home
from .identity import Identity
from .state import State


@dataclass(frozen=True, slots=True)
class Foundation:
    """The parts below all others, in the order in which they are opened."""

    config: Config
    home: Home
    identity: Identity
    state: State
    events: EventLog
    audit: AuditLog
    backends: Backends
    reserve: DiskReserve

    def problems(self) -> list[str]:
        """What the machine under the node lacks, in sentences."""
        return [*self.backends.problems(), *self.reserve.problems(), *filter(None, [self.state.problem])]
