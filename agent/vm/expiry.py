"""The time to live of VMs: when one with a `ttl` is deleted.

A clock that somebody sets must not delete VMs, so that an end is kept on two clocks: the time of day, and the time
since the machine's boot, which nobody sets and which counts while the machine sleeps. The second one decides for as
long as the machine is up. After a boot only the time of day can say how long it was off, and it may be wrong until the
network sets it: then nothing is deleted before `GRACE`, and what is left after that is kept on both clocks again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import msgspec

GRACE = 900.0
"""Seconds after the machine's boot before which no VM of an earlier boot is deleted."""
DRIFT = 5
"""Seconds by which the time of day may differ from the kept one before another end is shown."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a VM: by the time of day, and by the seconds since the boot with the ID `boot`."""

    at: datetime
    uptime: float
    boot: str


def uptime() -> float:
    """Return the seconds since the machine's boot, also those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def expiry_after(ttl: float | None) -> Expiry | None:
    """Return the end of a VM that exists for `ttl` seconds from now; None for one without an end."""
    if not ttl:
        return None
    end = (datetime.now(UTC) + timedelta(seconds=ttl)).replace(microsecond=0)
    return Expiry(at=end, uptime=uptime() + ttl, boot=boot_id())


def seconds_left(expiry: Expiry, ttl: float) -> float:
    """Return the seconds until the end, none or less when it is due."""
    if expiry.boot == boot_id():
        return expiry.uptime - uptime()
    by_time_of_day = (expiry.at - datetime.now(UTC)).total_seconds()
    return max(min(by_time_of_day, ttl), GRACE - uptime())


def shown_end(expiry: Expiry | None, ttl: int | None) -> datetime | None:
    """Return the end by the present time of day: the kept one, unless somebody has set the clock since."""
    if expiry is None:
        return None
    now = (datetime.now(UTC) + timedelta(seconds=seconds_left(expiry, ttl or 0))).replace(microsecond=0)
    return expiry.at if abs((now - expiry.at).total_seconds()) <= DRIFT else now
