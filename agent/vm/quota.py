"""Whether a principal may hold more. Decides only: pure functions of what it holds, what it asks and its limits."""

from __future__ import annotations

from collections.abc import Iterable

from ...protocols.access import Caller, account_of
from ...protocols.errors import QuotaExceeded
from ...protocols.vm import VmSpec
from .record import Record


def check_quota(caller: Caller, records: Iterable[Record], asked: VmSpec) -> None:
    """Raises: QuotaExceeded, naming the limit and what is held of it."""
    account = account_of(caller.principal)
    mine = [record for record in records if account_of(record.metadata.owner) == account]
    held = {
        "vms": len(mine),
        "cpu": sum(record.domain.cpu_cores for record in mine),
        "memory": sum(record.domain.memory for record in mine),
        "disk": sum(record.metadata.disk_size for record in mine),
    }
    wanted = {"vms": 1, "cpu": asked.cpu_cores, "memory": asked.memory, "disk": asked.disk_size}
    for name, amount in wanted.items():
        limit: int | None = getattr(caller.limits, name)
        if limit is not None and held[name] + amount > limit:
            raise QuotaExceeded(
                f"{account} may hold {limit} of {name} on this node, holds {held[name]} and asks for {amount}",
                resource=name, limit=limit, held=held[name], asked=amount,
            )  # fmt: skip
