"""Whether this machine's CPU can virtualize; without libvirt, for `doctor`."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def cpu_can_virtualize() -> bool:
    """Return whether the CPU has vmx or svm; True on other architectures, where libvirt must know."""
    if platform.machine() != "x86_64":
        return True
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return not {"vmx", "svm"}.isdisjoint(line.split())
    return False
