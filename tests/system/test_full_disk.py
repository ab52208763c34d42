"""A node whose disk is full: creations are refused or undone whole, and it goes on as soon as there is room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.nodes import open_test_node, spec
from tests.mounts import fill, mounted, needs_mounts
from twinshare.agent.vm.admission import Host
from twinshare.protocols.errors import InsufficientResources
from twinshare.protocols.vm import VmStatus

pytestmark = [pytest.mark.system, needs_mounts]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", 24) as place:
        yield place


@pytest.mark.parametrize("leave", [0, 4096, 65536, 200_000, 400_000])
async def test_a_creation_on_a_full_disk_is_refused_and_leaves_nothing(small_disk: Path, leave: int) -> None:
    home = small_disk / "node"
    async with open_test_node(home, reserve_disk=0) as (node, vms, _):
        # The size of the guest's disk is not what is short here: room for the files that make it is.
        node.vms.admission._look = lambda: Host(memory=8192, cpus=4, free_disk=100)
        await vms.create_vm(spec("there"))
        await vms.create_vm(spec("running", start=True))
        filler = fill(small_disk, leave)
        made: list[str] = []

        async def create_on() -> None:
            while True:
                made.append((await vms.create_vm(spec(f"one-{len(made)}"))).name)

        with pytest.raises(InsufficientResources):
            await create_on()
        assert sorted(vm.name for vm in await vms.list_vms()) == sorted(["running", "there", *made])
        assert len(list((home / "vms").iterdir())) == 2 + len(made)
        # Whoever makes room is never refused for want of it.
        assert (await vms.stop_vm("running", force=True)).status is VmStatus.STOPPED
        await vms.delete_vm("running")
        assert "running" not in {vm.name for vm in await vms.list_vms()}
        filler.unlink()
        assert (await vms.create_vm(spec("after"))).status is VmStatus.STOPPED
