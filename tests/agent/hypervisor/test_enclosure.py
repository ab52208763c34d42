"""The enclosure's promises, each shown by a process that tries to break them from inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twinshare.agent.hypervisor.enclosure import open_enclosure

pytestmark = pytest.mark.system
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@root
async def test_processes_inside_are_an_unprivileged_user_without_capabilities(tmp_path: Path) -> None:
    async with open_enclosure(tmp_path) as enclosure:
        status = (await enclosure.run(["cat", "/proc/self/status"])).stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
    assert "0" not in fields["Uid"].split()
