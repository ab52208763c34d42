"""The smallest guest: a boot sector that prints `tick 0001`, `tick 0002` … on the serial port, 18 times a second.

Its counter lives in memory only: a number that goes on proves that the guest was never restarted.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import trio

from twinshare.agent.hypervisor.port import DomainPlan

_TICK = bytes.fromhex(
    "31c08ed88ed0bc007c6631dbfbf443be457ce82000b9040089ddc1c50489e8240f04303c3976020427e81400"
    "e2ecb00ae80d00ebd8ac84c07405e80300ebf6c3baf803eec37469636b2000"
)
_NUMBER = re.compile(rb"tick ([0-9A-F]{4})\s")


def write_tick(path: Path) -> None:
    """A raw disk of 1 MiB: a virtio disk of one sector does not boot."""
    disk = bytearray(1 << 20)
    disk[: len(_TICK)] = _TICK
    disk[510:512] = b"\x55\xaa"
    path.write_bytes(disk)
    path.chmod(0o444)


def plan_maker(vms: Path, own: Callable[[Path], None] = lambda _: None) -> Callable[[str], Awaitable[DomainPlan]]:
    """Plans whose disk is an overlay on the tick guest, in folders of their own below `vms`."""
    base = vms / "tick.raw"

    async def make_plan(name: str, **changes: object) -> DomainPlan:
        if not base.exists():
            write_tick(base)
            own(base)
        directory = vms / str(uuid4())
        directory.mkdir()
        disk = directory / "disk.qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(disk)]
        await trio.run_process(create)
        own(directory)
        own(disk)
        facts: dict[str, object] = {
            "id": directory.name,
            "name": name,
            "cpu_cores": 1,
            "memory": 16,
            "accelerator": "qemu",
            "directory": directory,
            "disk": disk,
            "seed": None,
            "network": "default",
            "mac": "52:54:00:00:00:01",
            "metadata": "{}",
        }
        return DomainPlan(**facts | changes)  # type: ignore[arg-type]

    return make_plan


def last_tick(plan: DomainPlan) -> int:
    """The last number that the guest printed; 0 before the first."""
    try:
        found = _NUMBER.findall((plan.directory / "tty.log").read_bytes())
    except FileNotFoundError:
        return 0
    return int(found[-1], 16) if found else 0


async def ticks_past(plan: DomainPlan, number: int) -> int:
    """Wait until the guest has counted past `number`."""
    with trio.fail_after(30):
        while (now := last_tick(plan)) <= number:
            await trio.sleep(0.02)
    return now
