"""Admission of VMs by free resources: pure functions of what is there and what is asked.

Memory and CPUs are taken by VMs that run; a disk grows as its guest writes, so a new one must fit into what is free.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...protocols.errors import InsufficientResources
from ...protocols.node import Capacity, Resources
from ...protocols.size import GIB, MIB
from ..config import HypervisorConfig

NOTHING = Resources(memory=0, cpu=0, disk=0)


@dataclass(frozen=True, slots=True)
class Host:
    """The machine: memory in MiB, CPUs, free disk in GiB."""

    memory: int
    cpus: int
    free_disk: int


def read_host(data_dir: Path) -> Host:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Host(pages * page // MIB, len(os.sched_getaffinity(0)), shutil.disk_usage(data_dir).free // GIB)


def add(parts: Iterable[Resources]) -> Resources:
    total = NOTHING
    for part in parts:
        total = Resources(memory=total.memory + part.memory, cpu=total.cpu + part.cpu, disk=total.disk + part.disk)
    return total


def _larger(one: Resources, other: Resources) -> Resources:
    return Resources(memory=max(one.memory, other.memory), cpu=max(one.cpu, other.cpu), disk=max(one.disk, other.disk))


def _without(need: Resources, taken: Resources) -> Resources:
    return Resources(
        memory=max(0, need.memory - taken.memory), cpu=max(0, need.cpu - taken.cpu), disk=max(0, need.disk - taken.disk)
    )


class Admission:
    """Resources that operations have claimed, until they have taken them or given them back."""

    def __init__(self, limits: HypervisorConfig, look: Callable[[], Host]) -> None:
        self._limits, self._look = limits, look
        # The VM's ID, and what was claimed for it.
        self._claims: dict[object, tuple[str, Resources]] = {}

    def capacity(self, running: Mapping[str, Resources]) -> Capacity:
        """Return what there is; `running` is what each active VM takes, by its ID."""
        host, limits = self._look(), self._limits
        total = Resources(
            memory=int(host.memory * limits.memory_overcommit),
            cpu=int(host.cpus * limits.cpu_overcommit),
            disk=host.free_disk,
        )
        reserve = Resources(memory=limits.reserve_memory, cpu=0, disk=limits.reserve_disk)
        committed, in_flight = add(running.values()), add(self._in_flight(running).values())
        available = Resources(
            memory=max(0, total.memory - reserve.memory - committed.memory - in_flight.memory),
            cpu=max(0, total.cpu - committed.cpu - in_flight.cpu),
            disk=max(0, total.disk - reserve.disk - in_flight.disk),
        )
        return Capacity(total=total, reserve=reserve, committed=committed, in_flight=in_flight, available=available)

    def _in_flight(self, running: Mapping[str, Resources]) -> Mapping[str, Resources]:
        """What is claimed for each VM beyond what it takes already: several operations on one VM claim it once."""
        found: dict[str, Resources] = {}
        for id, claimed in self._claims.values():
            found[id] = _larger(found.get(id, NOTHING), _without(claimed, running.get(id, NOTHING)))
        return found

    def claim(self, id: str, need: Resources, running: Mapping[str, Resources], *, what: str) -> Callable[[], None]:
        """Claim resources for a VM until the returned function is called, whether it runs meanwhile or not.

        Raises: InsufficientResources, naming what lacks.
        """
        own = add([running.get(id, NOTHING), self._in_flight(running).get(id, NOTHING)])
        _require(_without(need, own), self.capacity(running).available, what)
        return self.claim_again(id, need)

    def check_size(self, need: Resources, *, what: str) -> None:
        """Refuse what would not fit if nothing else ran here. Raises: InsufficientResources, naming what lacks."""
        empty = Admission(self._limits, self._look)
        _require(need, empty.capacity({}).available, what)

    def claim_again(self, id: str, need: Resources) -> Callable[[], None]:
        """Claim without a check what was granted before a crash."""
        claim_id = object()
        self._claims[claim_id] = (id, need)

        def release() -> None:
            self._claims.pop(claim_id, None)

        return release


def _require(need: Resources, available: Resources, what: str) -> None:
    """Raises: InsufficientResources."""
    for name, unit in (("memory", " MiB"), ("cpu", ""), ("disk", " GiB")):
        wanted, free = getattr(need, name), getattr(available, name)
        if wanted > free:
            raise InsufficientResources(
                f"no room for {what}: it needs {wanted}{unit} of {name}, {free}{unit} is free on this node",
                resource=name, needed=wanted, available=free,
            )  # fmt: skip
