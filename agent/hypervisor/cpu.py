"""Whether this machine's CPU can virtualize; needs no libvirt, so that `doctor` can tell before there is one."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def cpu_can_virtualize() -> bool:
    """On x86 the CPU says so; elsewhere libvirt's word must do."""
    if platform.machine() != "x86_64":
        return True
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return not {"vmx", "svm"}.isdisjoint(line.split())
    return False
