"""What was begun and failed is taken back, also when the hypervisor goes away in the middle of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.journal import execution
from twinshare.agent.node import Node
from twinshare.protocols.errors import DeadlineExceeded, HypervisorDown, WrongState
from twinshare.protocols.operation import OperationState
from twinshare.protocols.services import VmService

from .nodes import open_test_node, spec


def goes_down_at_start(hypervisor: MemoryHypervisor) -> None:
    """The next start finds it gone, and so does whoever wants to take back what was made."""

    async def start(id: str) -> None:
        hypervisor.go_down()
        raise HypervisorDown("it went away")

    hypervisor.start = start  # type: ignore[method-assign]  # this once it fails


@asynccontextmanager
async def a_node(folder: Path) -> AsyncIterator[tuple[Node, VmService, MemoryHypervisor]]:
    """A node whose next start of a VM fails; what was made for it cannot be taken back yet."""
    async with open_test_node(folder, uri=f"fake://{folder}/fake.json") as (node, vms, hypervisor):
        goes_down_at_start(hypervisor)
        yield node, vms, hypervisor


async def only(node: Node) -> OperationState:
    [operation] = await node.operations.list()
    return operation.state


async def test_it_is_taken_back_when_the_hypervisor_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "UNDO_TIMEOUT", 0.1)
    async with a_node(tmp_path) as (node, vms, hypervisor):
        with trio.fail_after(60), pytest.raises(HypervisorDown):
            await vms.create_vm(spec(start=True))
        assert await only(node) is OperationState.RUNNING
        hypervisor.come_up()
        [operation] = await node.operations.list()
        assert (await node.operations.wait(operation.id, 60)).state is OperationState.FAILED
        assert await vms.list_vms() == []
        assert list((tmp_path / "vms").iterdir()) == []


async def test_a_node_that_stops_leaves_it_to_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "UNDO_TIMEOUT", 600.0)
    with trio.fail_after(60):
        async with a_node(tmp_path) as (node, vms, hypervisor), trio.open_nursery() as nursery:
            nursery.start_soon(vms.create_vm, spec(start=True))
            while hypervisor.connected:
                await trio.sleep(0.01)
            node.operations.close_timeout = 0.1
            nursery.cancel_scope.cancel()
    await taken_back_by_the_next(tmp_path)


async def taken_back_by_the_next(folder: Path) -> None:
    """Start a node again on a folder in which the undo of its one operation was left."""
    async with open_test_node(folder, uri=f"fake://{folder}/fake.json") as (node, vms, _):
        [operation] = await node.operations.list()
        assert (await node.operations.wait(operation.id, 60)).state is OperationState.FAILED
        assert await vms.list_vms() == []
        assert list((folder / "vms").iterdir()) == []


@pytest.mark.expects_errors
@pytest.mark.parametrize("error", [WrongState("it does not want to"), RuntimeError("a bug")], ids=["refused", "bug"])
async def test_what_cannot_be_undone_is_tried_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def start(hypervisor: MemoryHypervisor, id: str) -> None:
        raise WrongState("it cannot start")

    async def undefine(hypervisor: MemoryHypervisor, id: str) -> None:
        raise error

    async with open_test_node(tmp_path, uri=f"fake://{tmp_path}/fake.json") as (node, vms, _):
        with monkeypatch.context() as patches:
            patches.setattr(MemoryHypervisor, "start", start)
            patches.setattr(MemoryHypervisor, "undefine", undefine)
            with pytest.raises(WrongState, match="it cannot start"):
                await vms.create_vm(spec(start=True))
        assert await only(node) is OperationState.RUNNING, "it is not over while something of it is left"
    await taken_back_by_the_next(tmp_path)


async def test_a_hypervisor_that_is_too_slow_is_asked_again(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        real = hypervisor.destroy
        refused: list[str] = []

        async def start(id: str) -> None:
            raise DeadlineExceeded("it hangs")

        async def destroy(id: str) -> None:
            if not refused:
                refused.append(id)
                raise DeadlineExceeded("it hangs still")
            await real(id)

        hypervisor.start, hypervisor.destroy = start, destroy  # type: ignore[method-assign]  # as above
        with pytest.raises(DeadlineExceeded, match=r"it hangs$"):
            await vms.create_vm(spec(start=True))
        assert refused
        assert await only(node) is OperationState.FAILED
        assert await vms.list_vms() == []


def comes_up_late(hypervisor: MemoryHypervisor) -> None:
    """A start that was given up comes up between the power off and the end of the domain."""
    start, undefine, late = hypervisor.start, hypervisor.undefine, [True]

    async def undefine_late(id: str) -> None:
        if late:
            late.clear()
            await start(id)
        await undefine(id)

    hypervisor.undefine = undefine_late  # type: ignore[method-assign]  # once it comes late


async def test_a_start_that_comes_up_after_it_was_given_up_is_ended_too(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        comes_up_late(hypervisor)

        async def start(id: str) -> None:
            raise DeadlineExceeded("it hangs")

        hypervisor.start = start  # type: ignore[method-assign]  # this once it fails
        with pytest.raises(DeadlineExceeded):
            await vms.create_vm(spec(start=True))
        assert await only(node) is OperationState.FAILED
        assert await vms.list_vms() == []


async def test_a_deletion_ends_such_a_start_too(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        await vms.create_vm(spec())
        comes_up_late(hypervisor)
        await vms.delete_vm("one")
        assert await vms.list_vms() == []
        assert list((tmp_path / "vms").iterdir()) == []
