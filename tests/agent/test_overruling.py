"""What powers a VM off does not wait for a guest that is asked politely, and what only changes metadata neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from tests.stopwatch import within
from twinshare.agent.vm.admission import Host
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import InsufficientResources, WrongState
from twinshare.protocols.services import SERVICES, VmService
from twinshare.protocols.table import all_methods
from twinshare.protocols.vm import ForwardSpec, VmChange, VmStatus

OPERATIONS = all_methods(SERVICES)["list_operations"]
POLITE = {"stop": VmService.stop_vm, "restart": VmService.restart_vm}


async def until_shown(vms: VmService, status: VmStatus) -> None:
    with within(10):
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

        with within(10):
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

        with within(10):
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


@pytest.mark.parametrize("order", ["start", "restart"])
async def test_a_vm_that_stops_to_run_again_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    async with open_test_node(tmp_path, reserve_memory=0, reserve_disk=0) as (node, vms, hypervisor):
        node.vms.admission._look = lambda: Host(memory=100, cpus=1, free_disk=10)
        one = await vms.create_vm(spec(start=True))
        await vms.create_vm(spec("two"))
        refused: list[InsufficientResources] = []
        start = hypervisor.start

        async def start_after_another(id: str) -> None:
            if id == one.id:
                with pytest.raises(InsufficientResources) as error:
                    await vms.start_vm("two")
                refused.append(error.value)
            await start(id)

        monkeypatch.setattr(hypervisor, "start", start_after_another)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery, node.vms.locked(one.id, VmStatus.STOPPING):
                nursery.start_soon(getattr(vms, f"{order}_vm"), "one")
                while len(await node.call(LOCAL_ADMIN, OPERATIONS, {})) < 3:
                    await trio.sleep(0.005)
                await hypervisor.destroy(one.id)
                await node.vms.inventory.refresh(one.id)
        assert refused[0].details["resource"] == "memory"


async def test_a_vm_that_runs_is_started_whatever_is_free(tmp_path: Path) -> None:
    async with open_test_node(tmp_path, reserve_memory=0, reserve_disk=0) as (node, vms, _):
        node.vms.admission._look = lambda: Host(memory=100, cpus=1, free_disk=10)
        await vms.create_vm(spec(start=True))
        free = node.vms.admission.capacity(node.vms.inventory.running()).available
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(vms.restart_vm, "one")
        assert node.vms.admission.capacity(node.vms.inventory.running()).available == free
        node.vms.admission._look = lambda: Host(memory=0, cpus=1, free_disk=10)
        assert (await vms.start_vm("one")).status is VmStatus.RUNNING
