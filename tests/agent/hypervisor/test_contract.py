"""One check for every hypervisor."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.agent.hypervisor.guests import PlanMaker
from tests.agent.hypervisor.private import data_directory, needs_libvirt, new_sandbox
from twinshare.agent.hypervisor.contract import check_hypervisor
from twinshare.agent.hypervisor.open import open_hypervisor
from twinshare.agent.hypervisor.port import DomainPlan


def paper_plans(directory: Path) -> Callable[[str], Awaitable[DomainPlan]]:
    """Plans for hypervisors that look at no file."""

    async def make_plan(name: str) -> DomainPlan:
        return DomainPlan(
            id=str(uuid4()),
            name=name,
            cpu_cores=1,
            memory=64,
            accelerator="qemu",
            directory=directory,
            disk=directory / "disk.qcow2",
            seed=None,
            network="default",
            mac="52:54:00:00:00:01",
            metadata="{}",
        )

    return make_plan


@pytest.mark.parametrize(
    "uri",
    ["fake://", "fake://{tmp_path}/domains.json?shutdown_after=never", "fake://?guest_program=1", "test:///default"],
)
async def test_without_guests(uri: str, tmp_path: Path) -> None:
    async with open_hypervisor(uri.format(tmp_path=tmp_path)) as hypervisor:
        await check_hypervisor(hypervisor, paper_plans(tmp_path))


@pytest.mark.system
@needs_libvirt
@pytest.mark.parametrize("kind", ["plain", "namespaces"])
async def test_with_guests_in_a_private_libvirtd(kind: str) -> None:
    async with new_sandbox(kind) as sandbox, open_hypervisor(sandbox=sandbox) as hypervisor:
        await check_hypervisor(hypervisor, PlanMaker(sandbox.path / "vms", sandbox.chown))


@pytest.mark.system
@needs_libvirt
async def test_with_guests_in_libvirt_within_the_process() -> None:
    with data_directory() as folder:
        user = ["nobody"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(folder, *user)
        command = [sys.executable, "-m", "tests.agent.hypervisor.embedded", str(folder), *user]
        await trio.run_process(command)
