"""What powers a VM off does not wait for a guest that is asked politely, and what only changes metadata neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from twinshare.agent.vm.admission import Host
from twinshare.protocols.errors import InsufficientResources, WrongState
from twinshare.protocols.services import VmService
from twinshare.protocols.vm import ForwardSpec, VmChange, VmStatus

POLITE = {"stop": VmService.stop_vm, "restart": VmService.restart_vm}


async def until_shown(vms: VmService, status: VmStatus) -> None:
    with trio.fail_after(10):
        while (await vms.get_vm("one")).status is not status:
            await trio.sleep(0.005)


@pytest.mark.parametrize("order", ["stop", "delete", "restart"])
@pytest.mark.parametrize("waiting", list(POLITE))
async def test_force_overrules_every_polite_stop_that_waits(tmp_path: Path, waiting: str, order: str) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        hypervisor.behaviour.shutdown_after = None
        await vms.create_vm(spec(start=True))
        ended = []

        async def wait() -> None:
            with pytest.raises(WrongState, match="overruled"):
                await getattr(vms, POLITE[waiting].__name__)("one", timeout=3600)
            ended.append(waiting)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(wait)
                await until_shown(vms, VmStatus.STOPPING)
                await getattr(vms, f"{order}_vm")("one", force=True)
        assert len(ended) == 2
        assert not node.vms.forced
        assert not node.vms.guest_waits


async def test_metadata_change_while_a_guest_is_asked_to_shut_down(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        hypervisor.behaviour.shutdown_after = None
        await vms.create_vm(spec(start=True))

        async def wait() -> None:
            with pytest.raises(WrongState, match="overruled"):
                await vms.stop_vm("one", timeout=3600)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until_shown(vms, VmStatus.STOPPING)
                made = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
                assert made.active
                await vms.update_vm("one", VmChange(labels={"a": "b"}))
                assert (await vms.get_vm("one")).status is VmStatus.STOPPING
                await vms.remove_forward("one", made.host_port)
                await vms.stop_vm("one", force=True)
        assert (await vms.get_vm("one")).labels == {"a": "b"}


async def test_a_start_of_a_paused_vm_resumes_it(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        await vms.pause_vm("one")
        assert (await vms.start_vm("one")).status is VmStatus.RUNNING


async def test_a_vm_that_is_not_started_claims_its_disk_only(tmp_path: Path) -> None:
    async with open_test_node(tmp_path, reserve_memory=0, reserve_disk=0) as (node, vms, _):
        node.vms.admission._look = lambda: Host(memory=100, cpus=1, free_disk=3)
        await vms.create_vm(spec("running", start=True))
        await vms.create_vm(spec("two"))
        with pytest.raises(InsufficientResources, match="memory"):
            await vms.start_vm("two")
        with pytest.raises(InsufficientResources, match="memory"):
            await vms.create_vm(spec("three", start=True))
        with pytest.raises(InsufficientResources, match="memory"):
            await vms.create_vm(spec("larger-than-the-node", memory=128))
        with pytest.raises(InsufficientResources, match="disk"):
            await vms.create_vm(spec("four", disk_size=4))
