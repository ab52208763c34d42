"""The node's capacity in Meda's numbers: GiB without fractions."""

from __future__ import annotations

from ...protocols.errors import InsufficientResources
from ...protocols.node import Capacity, Resources
from ...protocols.vm import Vm, VmSpec, VmStatus
from .bodies import Amount, CapacityInfo

_MIB_PER_GIB = 1024


def capacity_info(capacity: Capacity) -> CapacityInfo:
    """What there is, is rounded down; what is taken, up: the rest is never more than there truly is."""
    total = Amount(mem_gb=capacity.total.memory // _MIB_PER_GIB, cpu=capacity.total.cpu, disk_gb=capacity.total.disk)
    reserve, committed, in_flight = map(_taken, (capacity.reserve, capacity.committed, capacity.in_flight))
    left = {
        name: max(0, getattr(total, name) - sum(getattr(amount, name) for amount in (reserve, committed, in_flight)))
        for name in Amount.__struct_fields__
    }
    return CapacityInfo(
        total=total, reserve=reserve, committed=committed, in_flight=in_flight, available=Amount(**left)
    )


def _taken(amount: Resources) -> Amount:
    return Amount(mem_gb=-(-amount.memory // _MIB_PER_GIB), cpu=amount.cpu, disk_gb=amount.disk)


def check_replacement(capacity: Capacity, there: Vm, spec: VmSpec) -> None:
    """Whether a VM fits in once `there` is gone; asked before that one is deleted. Raises: InsufficientResources."""
    held = there if there.status is not VmStatus.STOPPED else None
    for name, needed, freed in (
        ("memory", spec.memory, held.memory if held else 0),
        ("cpu", spec.cpu_cores, held.cpu_cores if held else 0),
        ("disk", spec.disk_size, 0),
    ):
        available = getattr(capacity.available, name) + freed
        if needed > available:
            raise InsufficientResources(
                f"no room for VM '{spec.name}': it needs {needed} of {name}, {available} would be free",
                resource=name, needed=needed, available=available,
            )  # fmt: skip
