"""A hypervisor that has not listed its VMs yet: nobody takes that for a machine without VMs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import images_of, vms_of
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.hypervisor.port import Domain
from twinshare.agent.open_node import open_node
from twinshare.protocols.errors import DeadlineExceeded, HypervisorDown

from .nodes import config, open_test_node, spec


async def test_vms_that_were_not_listed_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"fake://{tmp_path}/fake.json"
    async with open_test_node(tmp_path, uri=uri) as (_, vms, _):
        made = await vms.create_vm(spec())
    real, hangs = MemoryHypervisor.list_domains, [True]

    async def list_domains(self: MemoryHypervisor) -> Sequence[Domain]:
        if hangs:
            raise DeadlineExceeded("it hangs")
        return await real(self)

    monkeypatch.setattr(MemoryHypervisor, "list_domains", list_domains)
    async with open_node(config(tmp_path, uri=uri)) as node:
        vms, images = vms_of(node), images_of(node)
        asked = (
            vms.list_vms(),
            vms.get_vm("one"),
            vms.create_vm(spec()),
            images.remove_image("disk"),
            images.prune_images(all=True),
        )
        for refused in asked:
            with pytest.raises(HypervisorDown):
                await refused
        [image] = await images.list_images()
        assert node.images.store.base_path(image.digest).exists()  # type: ignore[attr-defined]  # the store on disk's own
        hangs.clear()
        with within(10):
            while not node.vms.inventory.is_complete:
                await trio.sleep(0.05)
        assert [vm.id for vm in await vms.list_vms()] == [made.id]
        assert (await images.prune_images(all=True)).images == []


async def test_images_can_go_from_a_machine_without_vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_domains(self: MemoryHypervisor) -> Sequence[Domain]:
        raise DeadlineExceeded("it hangs")

    monkeypatch.setattr(MemoryHypervisor, "list_domains", list_domains)
    async with open_test_node(tmp_path) as (node, _, _):
        images = images_of(node)
        assert (await images.remove_image("disk")).name == "disk"
