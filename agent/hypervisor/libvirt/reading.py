"""What libvirt says of domains, turned into ours. A list is one cheap pass that never waits for a guest.

What changes only with a definition is read from XML and kept, until an event or a change of ours says otherwise,
or a few seconds have passed: libvirt announces no `virsh setmaxmem`.
"""

from __future__ import annotations

import itertools
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import libvirt

from ..domain_xml import KeptDomain, read_domain
from ..port import Domain, DomainState
from .errors import passing_over

_ACTIVE = frozenset(
    {
        libvirt.VIR_DOMAIN_RUNNING,
        libvirt.VIR_DOMAIN_BLOCKED,
        libvirt.VIR_DOMAIN_PAUSED,
        libvirt.VIR_DOMAIN_SHUTDOWN,
        libvirt.VIR_DOMAIN_PMSUSPENDED,
    }
)
_STATES: dict[int, DomainState] = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,  # on its way down, and still there
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.SUSPENDED,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
}
_SPECIAL: dict[tuple[int, int], tuple[DomainState, str]] = {
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER): (DomainState.PAUSED, "user"),
    # Our domains are paused for no other I/O error: see domain_xml.
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR): (DomainState.PAUSED, "disk_full"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED): (DomainState.CRASHED, "crashed"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION): (DomainState.PAUSED, "migrating"),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED): (DomainState.CRASHED, "crashed"),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED): (DomainState.SHUTOFF, "failed"),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED): (DomainState.SUSPENDED, "saved"),
}


KEPT_FOR = 15.0  # seconds
_STARTING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
_RunKey = tuple[str, int]  # a domain's id and libvirt's number of this run of it


@dataclass(slots=True)
class Pass:
    """One look at libvirt, made in a thread: what it may take as known, and what it found out."""

    at: int
    known: Mapping[str, KeptDomain]
    born: Mapping[_RunKey, datetime]
    domains: list[Domain] = field(default_factory=list)
    newly_kept: dict[str, KeptDomain] = field(default_factory=dict)
    newly_born: dict[_RunKey, datetime] = field(default_factory=dict)

    def all(self, connection: libvirt.virConnect) -> None:
        """Look at every domain. A state of a hung guest is known to libvirt without asking it."""
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        found = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, flags)
        for domain, facts in found:
            with passing_over(libvirt.VIR_ERR_NO_DOMAIN):  # it vanished while we look
                self._see(domain, (facts["state.state"], facts["state.reason"]))

    def one(self, domain: libvirt.virDomain) -> None:
        state: Any = domain.state()
        self._see(domain, (state[0], state[1]))

    def _see(self, domain: libvirt.virDomain, state: tuple[int, int]) -> None:
        uuid = domain.UUIDString()
        kept = self.known.get(uuid)
        if kept is None:
            kept = self.newly_kept[uuid] = read_domain(domain.XMLDesc(_INACTIVE))
        ours, why = _SPECIAL.get(state, (_STATES.get(state[0], DomainState.SHUTOFF), None))
        self.domains.append(
            Domain(
                id=uuid,
                name=kept.name,
                state=ours,
                reason=why,
                cpu_cores=kept.cpu_cores,
                memory=kept.memory,
                accelerator=kept.accelerator,
                metadata=kept.metadata,
                started_at=self._born(uuid, domain.ID(), kept, state) if state[0] in _ACTIVE else None,
            )
        )

    def _born(self, id: str, run: int, kept: KeptDomain, state: tuple[int, int]) -> datetime:
        known = self.born.get((id, run))
        if known is not None:
            return known
        born = _birth_of(kept)
        if state != _STARTING:  # the socket may still be the one of the last run
            self.newly_born[id, run] = born
        return born


class Memory:
    """What is kept between passes. It lives in trio; a pass takes a copy along and hands back what it found out."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._clock = itertools.count(1)
        self._kept: dict[str, tuple[KeptDomain, float]] = {}
        self._born: dict[_RunKey, datetime] = {}
        self._forgotten_at: dict[str, int] = {}
        self._all_forgotten_at = 0

    def forget(self, id: str) -> None:
        """Its definition changed. A pass that is under way may have read the old one: that is not kept."""
        self._kept.pop(id, None)
        self._forgotten_at[id] = next(self._clock)

    def forget_all(self) -> None:
        self._kept.clear()
        self._all_forgotten_at = next(self._clock)

    def consoles(self) -> list[Path]:
        """Where the serial consoles of our domains are, as far as known."""
        return [Path(kept.serial) for kept, _ in self._kept.values() if kept.serial and kept.metadata is not None]

    def begin(self) -> Pass:
        oldest = self._now() - KEPT_FOR
        known = {uuid: kept for uuid, (kept, read_at) in self._kept.items() if read_at > oldest}
        return Pass(at=next(self._clock), known=known, born=dict(self._born))

    def learn(self, made: Pass, *, whole: bool) -> list[Domain]:
        """Keep what the pass found out; after a `whole` one, forget the domains that it did not see."""
        for uuid, kept in made.newly_kept.items():
            if max(self._forgotten_at.get(uuid, 0), self._all_forgotten_at) < made.at:
                self._kept[uuid] = kept, self._now()
        for key, born in made.newly_born.items():
            self._born.setdefault(key, born)
        if whole:
            seen = {domain.id for domain in made.domains}
            self._kept = {uuid: kept for uuid, kept in self._kept.items() if uuid in seen}
            self._born = {key: born for key, born in self._born.items() if key[0] in seen}
            self._forgotten_at = {uuid: at for uuid, at in self._forgotten_at.items() if at > made.at}
        return made.domains


def _birth_of(kept: KeptDomain) -> datetime:
    """When this run began: when its console's socket was made, which outlasts agent and libvirt unchanged."""
    if kept.metadata is not None and kept.serial is not None:
        with suppress(OSError):
            entry = Path(kept.serial).lstat()
            if stat.S_ISSOCK(entry.st_mode):
                return datetime.fromtimestamp(entry.st_mtime, UTC)
    return datetime.now(UTC)
