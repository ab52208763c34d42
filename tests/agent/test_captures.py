"""What a capture refuses, and when: before anything is written down, or when the VM has changed meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.agent.nodes import images_of, open_test_node, spec
from tests.images.stores import run_tool
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.hypervisor.port import DomainState
from twinshare.agent.image_operations import capture
from twinshare.agent.node import Node
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import ImageExists, InvalidRequest, TwinshareError, Unsupported, WrongState
from twinshare.protocols.operation import OperationState
from twinshare.protocols.vm import Vm


def suspend(hypervisor: MemoryHypervisor, vm: Vm) -> None:
    """As `virsh managedsave` does, which no node asks for."""
    hypervisor._move(hypervisor._record(vm.id), DomainState.SUSPENDED)


def tool_of(node: Node, before: Callable[[], Awaitable[object]], *, works: bool = True) -> None:
    """Call `before` when qemu-img is to run; let it fail then unless it `works`."""

    async def run(argv: list[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
        await before()
        if works:
            return await run_tool(argv, timeout=timeout)
        return subprocess.CompletedProcess(argv, 1, b"", b"qemu-img: error while reading: Input/output error")

    cast("Any", node.images.store)._run_tool = run


async def captures(node: Node) -> list[OperationState]:
    return [each.state for each in await node.operations.list() if each.kind == "capture_image"]


async def test_a_refused_capture_is_no_operation(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec())
        with pytest.raises(ImageExists):
            await images_of(node).capture_image("one", "disk")
        suspend(hypervisor, made)
        with trio.fail_after(60):
            while [record.domain.state for record in node.vms.inventory.records()] != [DomainState.SUSPENDED]:
                await trio.sleep(0.01)
        with pytest.raises(WrongState, match="its disk is not whole"):
            await images_of(node).capture_image("one", "made")
        assert await captures(node) == []


async def test_a_vm_that_is_suspended_while_its_capture_waits_is_not_captured(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec())
        entered, go_on, admitted = trio.Event(), trio.Event(), trio.Event()
        found: list[TwinshareError] = []

        async def hold() -> None:
            entered.set()
            await go_on.wait()

        async def second() -> None:
            try:
                await images_of(node).capture_image("one", "second")
            except TwinshareError as error:
                found.append(error)

        async def watch() -> None:
            while len(await captures(node)) < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
            admitted.set()

        tool_of(node, hold)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(images_of(node).capture_image, "one", "first")
                await entered.wait()
                nursery.start_soon(second)
                nursery.start_soon(watch)
                await admitted.wait()
                suspend(hypervisor, made)
                go_on.set()
        assert [type(error) for error in found] == [WrongState]
        assert sorted(image.name for image in await images_of(node).list_images()) == ["disk", "first"]


async def test_a_disk_that_cannot_be_read_is_not_taken_for_a_stop(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        tool_of(node, trio.lowlevel.checkpoint, works=False)
        with pytest.raises(InvalidRequest, match="qemu-img"):
            await images_of(node).capture_image("one", "made")


async def test_a_vm_that_stopped_and_started_meanwhile_is_no_image(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))

        async def again() -> None:
            await vms.stop_vm("one", force=True)
            await vms.start_vm("one")

        tool_of(node, again, works=False)
        with pytest.raises(WrongState, match="stopped while its disk was read"):
            await images_of(node).capture_image("one", "made")


async def test_a_hypervisor_that_exports_no_disk_captures_stopped_vms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherPower:
        """What the hypervisor of this node has not."""

    monkeypatch.setattr(capture, "DiskExport", OtherPower)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        with pytest.raises(Unsupported, match="cannot read a running VM's disk; stop it"):
            await images_of(node).capture_image("one", "made")


async def test_a_capture_is_an_event_of_its_owner(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        ann = Caller(principal="token:ann", role=Role.ADMIN)
        async with node.events.subscribe() as heard:
            made = await images_of(node, ann).capture_image("one", "made")
            with trio.fail_after(60):
                while (event := await heard.receive()).type != "image.added":
                    pass
        assert (event.data["name"], event.data["digest"]) == ("made", made.digest)
        with closing(sqlite3.connect(node.home.database)) as database:
            [account] = database.execute("SELECT account FROM event_accounts WHERE id = ?", [event.id]).fetchone()
        assert account == "token:ann", "it takes of the share that the owner has of the log"
