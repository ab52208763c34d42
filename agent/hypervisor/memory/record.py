"""A domain's record in memory and in the file, and the settings of the simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ...files import atomic_write
from ..port import Domain, DomainPlan, DomainState

ACTIVE = (DomainState.RUNNING, DomainState.PAUSED)


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """How calls and guests behave; may be changed at any time. Durations in seconds.

    `delay` is what every call takes, `timeout` how long a call waits for a hung guest, `shutdown_after` how long a
    guest takes to power off (None: it never does), `boots_in` how long until its agent answers (None: it has none).
    With `check_files` a domain whose disk is missing does not start. With `guest_program` each guest runs the guest
    program, as a process of this machine (guest_process.py), with `guest_agent` its agent runs commands
    (agent_process.py).
    """

    delay: float = 0.0
    timeout: float = 5.0
    shutdown_after: float | None = 0.01
    boots_in: float | None = 0.0
    check_files: bool = False
    guest_program: bool = False
    guest_agent: bool = False
    now: Callable[[], datetime] = _utc_now


@dataclass(slots=True, kw_only=True)
class Record:
    """One domain. `metadata` is the current one; the plan holds the one that it was defined with."""

    plan: DomainPlan
    metadata: str
    state: DomainState = DomainState.SHUTOFF
    reason: str | None = None
    started_at: datetime | None = None
    paused_at: datetime | None = None
    clock_behind: float = 0.0  # seconds that the guest's clock lost by pauses
    disk: Path | None = None  # the active one, when somebody moved it with libvirt

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def domain(self) -> Domain:
        plan = self.plan
        return Domain(
            id=plan.id,
            name=plan.name,
            state=self.state,
            reason=self.reason,
            cpu_cores=plan.cpu_cores,
            memory=plan.memory,
            accelerator=plan.accelerator,
            metadata=self.metadata,
            mac=plan.mac,
            started_at=self.started_at,
        )


def load(path: Path) -> dict[str, Record]:
    """Return the domains in the file; none when there is no file."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    records = msgspec.json.decode(text, type=list[Record], dec_hook=_decode)
    return {record.plan.id: record for record in records}


def save(path: Path, records: Iterable[Record]) -> None:
    """Replace the file. Not synced: the domains in memory end with the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, msgspec.json.encode(list(records), enc_hook=str), durable=False)


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
