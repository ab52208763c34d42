"""Reads libvirt's domains: a scan is one cheap pass that never waits for a guest.

What changes only with a definition is read from XML and cached, until an event or a change of ours invalidates it, or
until it expires after a few seconds: libvirt sends no event for `virsh setmaxmem`.
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

from ..domain_xml import DomainDefinition, parse_domain
from ..port import Domain, DomainState
from .errors import ignoring

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
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,  # shutting down, still active
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


CACHED_FOR = 15.0  # seconds
_STARTING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE
_RunKey = tuple[str, int]  # a domain's id and libvirt's number of this run of it


@dataclass(slots=True)
class Scan:
    """One pass over libvirt, made in a thread: copies of the cache on the way in, new entries on the way out."""

    at: int
    definitions: Mapping[str, DomainDefinition]
    start_times: Mapping[_RunKey, datetime]
    domains: list[Domain] = field(default_factory=list)
    new_definitions: dict[str, DomainDefinition] = field(default_factory=dict)
    new_start_times: dict[_RunKey, datetime] = field(default_factory=dict)

    def read_all(self, connection: libvirt.virConnect) -> None:
        """Read every domain. libvirt knows the state of a hung guest without asking its QEMU."""
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        stats = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, flags)
        for domain, counters in stats:
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN):  # it vanished meanwhile
                self._read(domain, (counters["state.state"], counters["state.reason"]))

    def read_one(self, domain: libvirt.virDomain) -> None:
        state: Any = domain.state()
        self._read(domain, (state[0], state[1]))

    def _read(self, domain: libvirt.virDomain, state: tuple[int, int]) -> None:
        uuid = domain.UUIDString()
        definition = self.definitions.get(uuid)
        if definition is None:
            definition = self.new_definitions[uuid] = parse_domain(domain.XMLDesc(_INACTIVE))
        ours, why = _SPECIAL.get(state, (_STATES.get(state[0], DomainState.SHUTOFF), None))
        self.domains.append(
            Domain(
                id=uuid,
                name=definition.name,
                state=ours,
                reason=why,
                cpu_cores=definition.cpu_cores,
                memory=definition.memory,
                accelerator=definition.accelerator,
                metadata=definition.metadata,
                mac=definition.mac,
                started_at=self._started_at(uuid, domain.ID(), definition, state) if state[0] in _ACTIVE else None,
            )
        )

    def _started_at(self, id: str, run: int, definition: DomainDefinition, state: tuple[int, int]) -> datetime:
        known = self.start_times.get((id, run))
        if known is not None:
            return known
        started_at = _start_time_of(definition)
        if state != _STARTING:  # the socket may still be that of the former run
            self.new_start_times[id, run] = started_at
        return started_at


class DomainCache:
    """The cache between scans. It belongs to trio; a scan in a thread gets copies, and its findings are merged."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._clock = itertools.count(1)
        self._definitions: dict[str, tuple[DomainDefinition, float]] = {}
        self._start_times: dict[_RunKey, datetime] = {}
        self._invalidated_at: dict[str, int] = {}
        self._all_invalidated_at = 0

    def forget(self, id: str) -> None:
        """Drop a definition that changed; one that a running scan may have read before is not cached."""
        self._definitions.pop(id, None)
        self._invalidated_at[id] = next(self._clock)

    def forget_all(self) -> None:
        """Drop all definitions."""
        self._definitions.clear()
        self._all_invalidated_at = next(self._clock)

    def consoles(self) -> list[Path]:
        """Return the serial console sockets of our domains, as far as cached."""
        return [
            Path(definition.serial)
            for definition, _ in self._definitions.values()
            if definition.serial and definition.metadata is not None
        ]

    def begin_scan(self) -> Scan:
        """Return a scan with copies of the entries that have not expired."""
        oldest = self._now() - CACHED_FOR
        definitions = {
            uuid: definition for uuid, (definition, read_at) in self._definitions.items() if read_at > oldest
        }
        return Scan(at=next(self._clock), definitions=definitions, start_times=dict(self._start_times))

    def merge(self, scan: Scan, *, complete: bool) -> list[Domain]:
        """Cache what the scan found; after a `complete` one, drop the domains that it did not find."""
        for uuid, definition in scan.new_definitions.items():
            if max(self._invalidated_at.get(uuid, 0), self._all_invalidated_at) < scan.at:
                self._definitions[uuid] = definition, self._now()
        for key, started_at in scan.new_start_times.items():
            self._start_times.setdefault(key, started_at)
        if complete:
            seen = {domain.id for domain in scan.domains}
            self._definitions = {uuid: definition for uuid, definition in self._definitions.items() if uuid in seen}
            self._start_times = {key: started_at for key, started_at in self._start_times.items() if key[0] in seen}
            self._invalidated_at = {uuid: at for uuid, at in self._invalidated_at.items() if at > scan.at}
        return scan.domains


def _start_time_of(definition: DomainDefinition) -> datetime:
    """Return when this run began: when its console's socket was made, which outlasts agent and libvirt."""
    if definition.metadata is not None and definition.serial is not None:
        with suppress(OSError):
            entry = Path(definition.serial).lstat()
            if stat.S_ISSOCK(entry.st_mode):
                return datetime.fromtimestamp(entry.st_mtime, UTC)
    return datetime.now(UTC)
