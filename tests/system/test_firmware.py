"""A disk that boots by UEFI alone boots, from variables of its own; where there is no such firmware it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.guest.uefi import uefi_disk
from tests.system.conftest import once
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import InvalidRequest

pytestmark = pytest.mark.system
OVMF = Path("/usr/share/qemu/firmware/60-edk2-x86_64.json")


@pytest.mark.skipif(not OVMF.exists(), reason="the package ovmf is not installed")
async def test_a_disk_for_uefi_boots(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        await client.import_image("uefi", once(uefi_disk()))
        made = await client.create_vm("loader", "uefi", memory=128, disk_size=1, start=True)
        assert made.firmware == "uefi"
        with trio.fail_after(60):
            while "uefi uefi" not in (await client.vms().vm_log("loader")).text:
                await trio.sleep(0.2)
        variables = node.data_dir / "vms" / made.id / "nvram.fd"
        assert variables.stat().st_size > 0
        await client.vms().restart_vm("loader", force=True)
        assert variables.exists(), "the variables of a VM outlive its restart"
        await client.vms().delete_vm("loader", force=True)
        assert not variables.parent.exists()
        await client.images().remove_image("uefi")


async def test_a_disk_for_another_architecture_is_refused(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        await client.import_image("arm", once(uefi_disk(loader=b"BOOTAA64EFI")))
        with pytest.raises(InvalidRequest, match="is for aarch64"):
            await client.create_vm("arm", "arm", memory=128, disk_size=1)
        await client.images().remove_image("arm")
