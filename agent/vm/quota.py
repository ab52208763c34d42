"""Whether a principal may hold more. Decides only: pure functions of what it holds, what it asks and its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...protocols.access import Caller, account_of
from ...protocols.errors import QuotaExceeded
from ...protocols.vm import VmSpec
from ..limits import MAX_LABELS, limits_of
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


def check_labels(owner: str, others: Iterable[Record], labels: Mapping[str, str]) -> None:
    """Check the labels of one VM of `owner` beside those of all other VMs, so that nobody makes the list too large.

    Raises: QuotaExceeded.
    """
    account, asked, mine, held = account_of(owner), _size(labels), 0, 0
    for record in others:
        size = _size(record.metadata.labels)
        held += size
        mine += size if account_of(record.metadata.owner) == account else 0
    for limit, before, whose in ((limits_of(account).labels, mine, account), (MAX_LABELS, held, "this node")):
        if asked and before + asked > limit:
            raise QuotaExceeded(
                f"the labels of all VMs of {whose} may have {limit} bytes, have {before} and would get {asked} more",
                resource="labels", limit=limit, held=before, asked=asked,
            )  # fmt: skip


def _size(labels: Mapping[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
