"""A whole node on the in-memory hypervisor."""

import dataclasses
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import vms_of
from twinshare.agent.hypervisor.port import ChangeKind
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import Forbidden, IdempotencyMismatch, VmExists, VmNotFound, WrongState
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.vm import CloudInit, VmStatus

from .nodes import open_test_node, spec


async def test_a_vm_lives_and_dies(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        made = await vms.create_vm(spec(cloud_init=CloudInit(user_data="#cloud-config\npackages: [a]\n")))
        assert (made.status, made.name, made.vnc_port) == (VmStatus.STOPPED, "one", None)
        started = await vms.start_vm("one")
        assert started.status is VmStatus.RUNNING
        assert started.uptime is not None
        assert (await vms.start_vm(made.id)).status is VmStatus.RUNNING
        with pytest.raises(WrongState):
            await vms.delete_vm("one")
        assert (await vms.stop_vm("one")).status is VmStatus.STOPPED
        assert (await vms.delete_vm("one")).id == made.id
        assert await vms.list_vms() == []
        assert list((tmp_path / "vms").iterdir()) == []
        with pytest.raises(VmNotFound):
            await vms.get_vm("one")


async def test_the_same_key_is_the_same_operation(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        caller = Caller(principal="local", role=Role.ADMIN, idempotency_key="k")
        vms = vms_of(node, caller)
        found: list[str] = []

        async def create() -> None:
            found.append((await vms.create_vm(spec())).id)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create)
        assert len(set(found)) == 1
        assert len(found) == 8
        with pytest.raises(IdempotencyMismatch):
            await vms.create_vm(spec("two"))


async def test_one_name_is_given_once(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        outcomes: list[str] = []

        async def create() -> None:
            try:
                await vms.create_vm(spec())
                outcomes.append("made")
            except VmExists:
                outcomes.append("taken")

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create)
        assert sorted(outcomes) == ["made"] + ["taken"] * 7
        assert len(await node.operations.list()) == 1


async def test_a_reference_is_a_name_before_it_is_an_id(tmp_path: Path) -> None:
    """Nobody can create such a name here, but whoever uses virsh can."""
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        first, second = [await vms.create_vm(spec(name)) for name in ("va", "vb")]
        record = hypervisor._records[second.id]
        record.plan = dataclasses.replace(record.plan, name=first.id)
        hypervisor._changed(ChangeKind.DEFINED, second.id)
        with trio.fail_after(60):
            while first.id not in {vm.name for vm in await vms.list_vms()}:
                await trio.lowlevel.checkpoint()
        await vms.delete_vm(first.id)
        assert [vm.name for vm in await vms.list_vms()] == ["va"]


async def test_who_owns_what(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        other = vms_of(node, Caller(principal="token:ci", role=Role.OPERATOR))
        with pytest.raises(Forbidden, match="admin"):
            await other.start_vm("one")
        mine = await other.create_vm(spec("mine", start=True))
        assert mine.owner == "token:ci"
        await other.delete_vm("mine", force=True)


async def test_a_caller_that_does_not_wait(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        vms = vms_of(node, Caller(principal="local", role=Role.ADMIN, detach=True))
        with pytest.raises(Detached) as detached:
            await vms.create_vm(spec())
        ended = await node.operations.wait(detached.value.operation.id, 5)
        assert ended.state is OperationState.DONE
        assert ended.result.name == "one"
        assert (await node.operations.get(ended.id)).result == ended.result
