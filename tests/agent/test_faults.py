"""What goes wrong under a node, and what its callers see of it: one clear error, nothing left behind, no lie."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import vms_of
from tests.stopwatch import within
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import (
    DeadlineExceeded,
    HypervisorDown,
    ImageDamaged,
    ImageInUse,
    ImageNotFound,
    InsufficientResources,
    InvalidRequest,
    OperationCancelled,
    Unsupported,
    VmExists,
    WrongState,
)
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.services import VmService
from twinshare.protocols.vm import ForwardSpec, Vm, VmStatus

from .nodes import open_test_node, spec


async def until(vms: VmService, name: str, status: VmStatus) -> Vm:
    with trio.fail_after(60):
        while True:
            found = [vm for vm in await vms.list_vms() if vm.name == name and vm.status is status]
            if found:
                return found[0]
            await trio.sleep(0.005)


@pytest.mark.parametrize(
    ("over", "error", "words"),
    [
        ({"image": "nothing"}, ImageNotFound, "nothing"),
        ({"memory": 1 << 29}, InsufficientResources, "memory"),
        ({"cpu_cores": 100}, InsufficientResources, "cpu"),
        ({"cpu_cores": 1000}, InvalidRequest, "cpu_cores"),
        ({"disk_size": 1 << 19}, InsufficientResources, "disk"),
        ({"network": "nowhere"}, InvalidRequest, "default"),
        ({"name": "there"}, VmExists, "there"),
    ],
)
async def test_a_refused_request_changes_nothing(
    tmp_path: Path, over: dict[str, Any], error: type[Exception], words: str
) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec("there"))
        before = await node.operations.list(), node.health.capacity().in_flight
        with pytest.raises(error, match=words):
            await vms.create_vm(spec(**over))
        assert [vm.name for vm in await vms.list_vms()] == ["there"]
        assert (await node.operations.list(), node.health.capacity().in_flight) == before
        assert len(list((tmp_path / "vms").iterdir())) == 1


async def test_a_start_that_fails_undoes_the_creation(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        real = hypervisor.start

        async def start(id: str) -> None:
            hypervisor.refuse_start(id, ImageDamaged("the disk is corrupt"))
            await real(id)

        hypervisor.start = start  # type: ignore[method-assign]  # it fails after the admission
        with pytest.raises(ImageDamaged):
            await vms.create_vm(spec(start=True))
        assert await vms.list_vms() == []
        assert list((tmp_path / "vms").iterdir()) == []
        assert (await node.operations.list())[0].state is OperationState.FAILED


async def test_kvm_that_is_not_there(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        made = await vms.create_vm(spec(hypervisor="kvm"))
        assert made.hypervisor == "qemu"
        assert "emulation" in made.warnings[0]
    async with open_test_node(tmp_path / "strict", allow_emulation=False) as (_, vms, _):
        with pytest.raises(Unsupported, match="allow_emulation"):
            await vms.create_vm(spec(hypervisor="kvm"))


async def test_a_guest_that_does_not_listen(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        hypervisor.set_shutdown(made.id, None)
        with pytest.raises(DeadlineExceeded, match="force"):
            await vms.stop_vm("one", timeout=1)
        assert (await vms.get_vm("one")).status is VmStatus.RUNNING
        assert (await vms.stop_vm("one", force=True)).status is VmStatus.STOPPED


async def test_a_vm_that_dies_by_itself_is_reported(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        async with node.events.subscribe() as events:
            hypervisor.crash(made.id)
            with trio.fail_after(60):
                event = await events.receive()
        assert (event.type, event.data["status"]) == ("vm.state", "crashed")
        assert (await until(vms, "one", VmStatus.CRASHED)).uptime is None
        assert (await vms.start_vm("one")).status is VmStatus.RUNNING


async def test_a_full_disk_pauses_and_room_lets_it_go_on(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        hypervisor.fill_disk(made.id)
        assert (await until(vms, "one", VmStatus.PAUSED)).reason == "disk_full"
        hypervisor.free_disk(made.id)
        await until(vms, "one", VmStatus.RUNNING)


async def test_reads_answer_while_the_hypervisor_is_down(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        await vms.create_vm(spec(start=True))
        hypervisor.go_down()
        assert [vm.name for vm in await vms.list_vms()] == ["one"]
        assert node.health.report().status == "degraded"
        for refused in (vms.stop_vm("one", force=True), vms.create_vm(spec("two"))):
            with pytest.raises(HypervisorDown):
                await refused
        hypervisor.come_up()
        assert (await vms.stop_vm("one", force=True)).status is VmStatus.STOPPED
        with within(10):
            while "hypervisor.up" not in (kinds := [event.type for event in node.events.kept]):
                await trio.sleep(0.005)
        assert [kind for kind in kinds if kind.startswith("hypervisor.")] == ["hypervisor.down", "hypervisor.up"]


async def test_a_creation_can_be_cancelled_while_it_works(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        hypervisor.behaviour.delay = 0.2
        with pytest.raises(Detached) as detached:
            await vms_of(node, Caller(principal="local", role=Role.ADMIN, detach=True)).create_vm(spec(start=True))
        id = detached.value.operation.id
        await until(vms, "one", VmStatus.CREATING)
        cancelled = await node.operations.cancel(id)
        assert cancelled.state is OperationState.CANCELLED
        assert cancelled.error is not None
        assert cancelled.error.code == OperationCancelled.code
        assert await vms.list_vms() == []
        assert list((tmp_path / "vms").iterdir()) == []
        assert (await vms.create_vm(spec())).status is VmStatus.STOPPED


async def test_whoever_hangs_up_stops_waiting_not_the_work(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        hypervisor.behaviour.delay = 0.1
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vms.create_vm, spec())
                while not (found := await node.operations.list()):
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        operation = found[0]
        assert (await node.operations.wait(operation.id, 60)).state is OperationState.DONE
        assert (await vms.get_vm("one")).status is VmStatus.STOPPED


async def test_an_image_in_use_stays_and_a_kept_disk_keeps_it_too(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        images = node.dispatcher
        await vms.create_vm(spec())
        remove = images.table["remove_image"]
        with pytest.raises(ImageInUse, match="one"):
            await node.call(LOCAL_ADMIN, remove, {"image": "disk"})
        await vms.delete_vm("one", delete_disk=False)
        assert len(list((tmp_path / "vms").glob("*/disk.qcow2"))) == 1
        with pytest.raises(ImageInUse, match="kept disk of one"):
            await node.call(LOCAL_ADMIN, remove, {"image": "disk"})


async def test_a_paused_vm_cannot_shut_down_but_can_be_forced(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        assert (await vms.pause_vm("one")).status is VmStatus.PAUSED
        with pytest.raises(WrongState, match="resume"):
            await vms.stop_vm("one")
        assert (await vms.resume_vm("one")).status is VmStatus.RUNNING
        await vms.stop_vm("one", force=True)
        with pytest.raises(WrongState, match="start"):
            await vms.pause_vm("one")


async def test_forwards_open_close_and_come_back(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        forward = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
        assert forward.active
        assert forward.host_port > 0
        assert b"HTTP" in await ask(forward.host_port)
        await vms.stop_vm("one", force=True)
        await until_refused(forward.host_port)
        await vms.start_vm("one")
        with trio.fail_after(60):
            while not (await vms.list_forwards("one"))[0].active:
                await trio.sleep(0.005)
        assert b"HTTP" in await ask(forward.host_port)
        await vms.remove_forward("one", forward.host_port)
        await until_refused(forward.host_port)
        assert await vms.list_forwards("one") == []


async def ask(port: int) -> bytes:
    with trio.fail_after(60):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join([data async for data in stream])


async def until_refused(port: int) -> None:
    with trio.fail_after(60):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                return
            await trio.sleep(0.005)


async def test_a_node_stops_while_work_goes_on_and_the_next_finishes_it(tmp_path: Path) -> None:
    uri = f"fake://{tmp_path}/fake.json"

    async def interrupted() -> AsyncIterator[Node]:
        async with open_test_node(tmp_path, uri=uri) as (node, vms, hypervisor):
            made = await vms.create_vm(spec(start=True))
            hypervisor.set_shutdown(made.id, None)
            caller = Caller(principal="local", role=Role.ADMIN, detach=True, idempotency_key="stop")
            with pytest.raises(Detached):
                await vms_of(node, caller).stop_vm("one", timeout=30)
            node.operations.close_timeout = 0.1
            yield node

    async for _ in interrupted():
        pass
    async with open_test_node(tmp_path, uri=uri) as (node, vms, _):
        operation = next(found for found in await node.operations.list() if found.idempotency_key == "stop")
        assert (await node.operations.wait(operation.id, 5)).state is OperationState.DONE
        assert (await vms.get_vm("one")).status is VmStatus.STOPPED
