"""Each bound of operations, forwards and captures, on a whole node: what lies beyond it is refused, and given back."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from tests.images.stores import run_tool
from twinshare.agent.journal.pace import Pace
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from twinshare.protocols.errors import Forbidden, RateLimited, Unavailable, WrongState
from twinshare.protocols.image_service import ImageService
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.services import NodeService, VmService
from twinshare.protocols.table import stub
from twinshare.protocols.vm import MAX_FORWARDS, ForwardSpec, VmStatus


def service(kind: type, node: Node, caller: Caller = LOCAL_ADMIN) -> Any:
    return stub(kind, partial(node.dispatcher.call, caller))


def limited(**limits: int) -> Caller:
    return Caller(principal="token:limited", role=Role.ADMIN, limits=Limits(**limits))


async def test_operations_a_minute_are_counted_for_each_principal(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        mine = service(VmService, node, limited(operations_per_minute=2))
        await mine.create_vm(spec())
        await mine.start_vm("one")
        with pytest.raises(RateLimited, match="2 operations a minute") as refused:
            await mine.pause_vm("one")
        assert 50 < refused.value.details["retry_after"] <= 60
        assert (await vms.get_vm("one")).status is VmStatus.RUNNING
        await vms.pause_vm("one")


async def test_operations_at_once_are_counted_and_given_back(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        await vms.create_vm(spec("two"))
        hypervisor.set_shutdown(made.id, None)
        caller = limited(operations_at_once=1)
        detached = Caller(principal=caller.principal, role=Role.ADMIN, limits=caller.limits, detach=True)
        with pytest.raises(Detached) as under_way:
            await service(VmService, node, detached).stop_vm("one", timeout=60)
        with pytest.raises(RateLimited, match="1 operations at once"):
            await service(VmService, node, caller).start_vm("two")
        await node.operations.cancel(under_way.value.operation.id)
        await service(VmService, node, caller).start_vm("two")


async def test_an_operation_that_is_not_admitted_counts_no_more(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        mine = service(VmService, node, limited(operations_at_once=1))
        for _ in range(3):
            with pytest.raises(WrongState):
                await mine.pause_vm("one")
        await mine.start_vm("one")


async def test_a_vm_has_so_many_forwards_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FORWARDS == 64
    monkeypatch.setattr("twinshare.agent.vm.forwards.MAX_FORWARDS", 2)
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        made = [await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=port)) for port in (80, 81)]
        with pytest.raises(Forbidden, match="2 forwards"):
            await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=82))
        assert len(await vms.list_forwards("one")) == 2
        await vms.remove_forward("one", made[0].host_port)
        await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=82))


async def test_captures_of_one_vm_follow_each_other(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        await vms.create_vm(spec("two", start=True))
        store = cast("Any", node.images.store)
        entered = trio.Event()
        at_once = most = 0

        async def counted(argv: list[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            entered.set()
            # The other one, if nothing holds it, comes here too while this one waits.
            await trio.testing.wait_all_tasks_blocked(0.05)
            done = await run_tool(argv, timeout=timeout)
            at_once -= 1
            return done

        store._run_tool = counted
        images = service(ImageService, node)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for name in ("a", "b", "c"):
                    nursery.start_soon(images.capture_image, "one", name)
        assert entered.is_set()
        assert most == 1
        assert {image.name for image in await images.list_images()} == {"disk", "a", "b", "c"}


class Databases:
    """The connections that a node has opened; a function can be called in the middle of a write to the journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[tuple[str, sqlite3.Connection]] = []
        plain = sqlite3.connect

        def connect(file: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = plain(file, *args, **kwargs)
            self.opened.append((str(file), connection))
            return connection

        monkeypatch.setattr(sqlite3, "connect", connect)

    def when_an_operation_is_written(self, call: Callable[[], None]) -> None:
        # The first one writes; a later one copies the log of the database.
        connection = next(connection for file, connection in self.opened if file.endswith("twinshare.db"))
        connection.create_function("of_the_test", 0, call)
        connection.execute(
            "CREATE TEMP TRIGGER IF NOT EXISTS held BEFORE INSERT ON operations BEGIN SELECT of_the_test(); END"
        )


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Databases:
    return Databases(monkeypatch)


async def test_claims_are_released_when_the_journal_cannot_be_written(tmp_path: Path, databases: Databases) -> None:
    def fail() -> None:
        raise OSError("the journal cannot be written")

    async with open_test_node(tmp_path) as (node, vms, _):
        mine = service(VmService, node, limited(operations_at_once=1))
        before = await service(NodeService, node).capacity()
        databases.when_an_operation_is_written(fail)
        with pytest.raises(sqlite3.OperationalError):
            await mine.create_vm(spec())
        assert await service(NodeService, node).capacity() == before
        databases.when_an_operation_is_written(lambda: None)
        await mine.create_vm(spec())
        assert [vm.name for vm in await vms.list_vms()] == ["one"]


async def test_a_caller_who_leaves_during_the_write_leaves_a_whole_operation(
    tmp_path: Path, databases: Databases
) -> None:
    """It is written and carried out: not one that is in the journal and that nobody works on until the next start."""
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        go_on.wait(20)

    async with open_test_node(tmp_path) as (node, vms, _):
        databases.when_an_operation_is_written(hold)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vms.create_vm, spec())
                await trio.to_thread.run_sync(entered.wait)
                nursery.cancel_scope.cancel()
                go_on.set()
            [operation] = await node.operations.list()
            assert (await node.operations.wait(operation.id, 20)).state is OperationState.DONE
        assert [vm.name for vm in await vms.list_vms()] == ["one"]


async def test_what_was_admitted_is_written_though_the_caller_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        plain, scope = Pace.begin, trio.CancelScope()

        def begin(pace: Pace, principal: str, limits: Limits, now: float) -> None:
            plain(pace, principal, limits, now)
            scope.cancel()

        monkeypatch.setattr(Pace, "begin", begin)
        with scope:
            await vms.start_vm("one")
        assert scope.cancelled_caught
        [started] = [each for each in await node.operations.list() if each.kind == "start_vm"]
        assert (await node.operations.wait(started.id, 20)).state is OperationState.DONE


async def test_a_node_that_stops_takes_no_new_work(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        await node.operations.close()
        with pytest.raises(Unavailable, match="stopping"):
            await vms.start_vm("one")
        assert (await vms.get_vm("one")).status is VmStatus.STOPPED
