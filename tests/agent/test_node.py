"""A whole node on the hypervisor's twin."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig, NodeConfig
from twinshare.agent.images.contract import pieces, raw_disk
from twinshare.agent.node import Node, open_node
from twinshare.agent.vms import LocalVms
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, IdempotencyMismatch, VmExists, VmNotFound, WrongState
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.vm import CloudInit, VmSpec, VmStatus


def config(data_dir: Path) -> Config:
    return Config(
        node=NodeConfig(name="here", data_dir=str(data_dir)),
        api=ApiConfig(listen="127.0.0.1:0"),
        hypervisor=HypervisorConfig(uri=f"fake://{data_dir}/fake.json", stop_timeout=2),
    )


@asynccontextmanager
async def node_with_image(data_dir: Path) -> AsyncIterator[tuple[Node, LocalVms]]:
    async with open_node(config(data_dir)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        yield node, LocalVms(node.vms, LOCAL_ADMIN)


def spec(name: str = "one", **over: object) -> VmSpec:
    return VmSpec(**{"name": name, "image": "disk", "memory": 64, "disk_size": 1, "cpu_cores": 1} | over)  # type: ignore[arg-type]


async def test_a_vm_lives_and_dies(tmp_path: Path) -> None:
    async with node_with_image(tmp_path) as (_node, vms):
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
    async with node_with_image(tmp_path) as (node, _):
        caller = Caller(principal="local", role=Role.ADMIN, idempotency_key="k")
        vms = LocalVms(node.vms, caller)
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
    async with node_with_image(tmp_path) as (node, vms):
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


async def test_who_owns_what(tmp_path: Path) -> None:
    async with node_with_image(tmp_path) as (node, vms):
        await vms.create_vm(spec())
        other = LocalVms(node.vms, Caller(principal="token:ci", role=Role.OPERATOR))
        with pytest.raises(Forbidden, match="admin"):
            await other.start_vm("one")
        mine = await other.create_vm(spec("mine", start=True))
        assert mine.owner == "token:ci"
        await other.delete_vm("mine", force=True)


async def test_a_caller_that_does_not_wait(tmp_path: Path) -> None:
    async with node_with_image(tmp_path) as (node, _):
        vms = LocalVms(node.vms, Caller(principal="local", role=Role.ADMIN, detach=True))
        with pytest.raises(Detached) as detached:
            await vms.create_vm(spec())
        ended = await node.operations.wait(detached.value.operation.id, 5)
        assert ended.state is OperationState.DONE
        assert ended.result.name == "one"
        assert (await node.operations.get(ended.id)).result == ended.result
