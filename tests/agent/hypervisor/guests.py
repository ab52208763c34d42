"""The smallest guests: boot sectors.

`tick` prints `tick 0001`, `tick 0002` … on the serial port, 18 times a second. Its counter lives in memory only: a
number that goes on proves that the guest was never restarted. `filler` writes its disk full, and a `w` for each 32 KiB.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import trio

from twinshare.agent.hypervisor.port import DomainPlan

_TICK = bytes.fromhex(
    "31c08ed88ed0bc007c6631dbfbf443be457ce82000b9040089ddc1c50489e8240f04303c3976020427e81400"
    "e2ecb00ae80d00ebd8ac84c07405e80300ebf6c3baf803eec37469636b2000"
)
_FILLER = bytes.fromhex(
    "31c08ed88ed0bc007cfbb80043b280be347ccd13b06572086683063c7c40b07788c3bafd03eca82074fb88d8baf803ee"
    "ebd8669010004000000000f00008000000000000"
)
_NUMBER = re.compile(rb"tick ([0-9A-F]{4})\s")


def write_guest(path: Path, code: bytes = _TICK) -> None:
    """A raw disk of 1 MiB: a virtio disk of one sector does not boot."""
    disk = bytearray(1 << 20)
    disk[: len(code)] = code
    disk[510:512] = b"\x55\xaa"
    path.write_bytes(disk)
    path.chmod(0o444)


class PlanMaker:
    """Plans with an overlay on a guest as disk, in folders of their own. `own` gives a path to QEMU's user."""

    def __init__(self, vms: Path, own: Callable[[Path], None] = lambda _: None) -> None:
        self._vms = vms
        self._own = own

    async def __call__(self, name: str, **changes: object) -> DomainPlan:
        directory = self._vms / str(uuid4())
        directory.mkdir()
        disk = directory / "disk.qcow2"
        await self.overlay(disk, self.base("tick", _TICK))
        self._own(directory)
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
        return DomainPlan(**facts | changes)  # type: ignore[arg-type]  # the plan's own fields, by name

    def base(self, name: str, code: bytes) -> Path:
        path = self._vms / f"{name}.raw"
        if not path.exists():
            write_guest(path, code)
            self._own(path)
        return path

    def filler(self) -> Path:
        return self.base("filler", _FILLER)

    async def overlay(self, disk: Path, base: Path, size: str = "64M") -> None:
        await trio.run_process(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(disk), size]
        )
        self._own(disk)


def last_tick(plan: DomainPlan) -> int:
    """The last number that the guest printed; 0 before the first."""
    try:
        found = _NUMBER.findall((plan.directory / "tty.log").read_bytes())
    except FileNotFoundError:
        return 0
    return int(found[-1], 16) if found else 0


async def ticks_past(plan: DomainPlan, number: int) -> int:
    """Wait until the guest has counted past `number`."""
    with trio.fail_after(60):
        while (now := last_tick(plan)) <= number:
            await trio.sleep(0.02)
    return now
