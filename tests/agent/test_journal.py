"""The journal of operations: what callers and listeners are given at the end of one, and what a stop leaves."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import open_test_node, spec, vms_of
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.journal.active import ActiveOperation, Asked
from twinshare.agent.journal.decode import former_caller
from twinshare.agent.journal.pace import Pace
from twinshare.agent.journal.store import JournalStore
from twinshare.agent.state import State
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from twinshare.protocols.errors import HypervisorDown, RateLimited
from twinshare.protocols.operation import Detached, OperationState


def caller(**fields: object) -> Caller:
    return Caller(principal="local", role=Role.ADMIN, **fields)  # type: ignore[arg-type]  # fields of Caller


async def test_a_repeated_request_that_does_not_wait_is_answered_with_the_ended_operation(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        asked = vms_of(node, caller(idempotency_key="key", detach=True))
        for _ in range(2):
            with pytest.raises(Detached) as detached:
                await asked.start_vm("one")
            ended = await node.operations.wait(detached.value.operation.id, 60)
            assert ended.state is OperationState.DONE
        assert detached.value.operation == ended


async def test_a_change_without_a_key_is_looked_up_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn in the thread of the database is a wait behind what members have written."""
    queries: list[str] = []
    query = State.query

    async def counting(state: State, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        queries.append(statement)
        return await query(state, statement, values)

    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        monkeypatch.setattr(State, "query", counting)
        await vms.start_vm("one")
        assert not [each for each in queries if "WHERE key" in each]
        await vms_of(node, caller(idempotency_key="key")).stop_vm("one", force=True)
        assert len([each for each in queries if "WHERE key" in each]) == 1


async def test_the_event_of_an_end_has_the_error_exactly_if_it_failed(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        await vms.create_vm(spec())

        async def start(id: str) -> None:
            raise HypervisorDown("it went away")

        hypervisor.start = start  # type: ignore[method-assign]  # this once it fails
        with pytest.raises(HypervisorDown):
            await vms.start_vm("one")
    ends = {event.data["kind"]: event.data for event in node.events.kept if event.type == "op.done"}
    assert (ends["create_vm"]["state"], "error" in ends["create_vm"]) == ("done", False)
    assert (ends["start_vm"]["state"], "code" in ends["start_vm"]["error"]) == ("failed", True)


async def test_the_end_is_written_though_the_node_stops_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, stop = JournalStore.update, trio.CancelScope()

    async def update(store: JournalStore, active: ActiveOperation) -> None:
        if active.state is OperationState.DONE and active.kind == "start_vm":
            stop.cancel()
        await plain(store, active)

    with stop:
        async with open_test_node(tmp_path) as (node, vms, _):
            file = node.home.database
            await vms.create_vm(spec())
            monkeypatch.setattr(JournalStore, "update", update)
            await vms.start_vm("one")
    assert stop.cancelled_caught
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT state FROM operations WHERE kind = 'start_vm'").fetchall() == [("done",)]


async def test_ends_that_come_at_once_are_each_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrote the ends of all the others, too: the square of their number."""
    written: list[str] = []
    plain, all_here, count = JournalStore.write_end, trio.Event(), 8

    async def write_end(store: JournalStore, active: ActiveOperation) -> None:
        written.append(active.id)
        if len(written) == count:
            all_here.set()
        await all_here.wait()
        await plain(store, active)

    async with open_test_node(tmp_path) as (node, vms, _):
        for number in range(count):
            await vms.create_vm(spec(f"vm-{number}"))
        monkeypatch.setattr(JournalStore, "write_end", write_end)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(vms.start_vm, f"vm-{number}")
        started = await node.operations.list(OperationState.DONE)
    assert sorted(written) == sorted(one.id for one in started if one.kind == "start_vm")


async def test_an_operation_that_goes_on_after_a_restart_counts_as_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, plain = trio.Event(), MemoryHypervisor.shutdown

    async def shutdown(hypervisor: MemoryHypervisor, id: str) -> None:
        await go_on.wait()
        await plain(hypervisor, id)

    monkeypatch.setattr(MemoryHypervisor, "shutdown", shutdown)
    uri = f"fake://{tmp_path}/fake.json"
    async with open_test_node(tmp_path, uri=uri) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        await vms.create_vm(spec("two"))
        with pytest.raises(Detached) as detached:
            await vms_of(node, caller(detach=True)).stop_vm("one", timeout=30)
        node.operations.close_timeout = 0.0
    async with open_test_node(tmp_path, uri=uri) as (node, _, _):
        mine = vms_of(node, caller(limits=Limits(operations_at_once=1)))
        with pytest.raises(RateLimited, match="1 operations at once"):
            await mine.start_vm("two")
        go_on.set()
        assert (await node.operations.wait(detached.value.operation.id, 60)).state is OperationState.DONE
        await mine.start_vm("two")


@pytest.mark.parametrize(
    ("principal", "stored", "role"),
    [
        ("local", None, Role.ADMIN),
        ("12D3Ko", None, Role.OPERATOR),
        ("12D3Ko", "viewer", Role.VIEWER),
        ("token:ci", "emperor", Role.OPERATOR),
    ],
)
def test_a_row_without_a_role_that_is_known_here_is_an_operators(principal: str, stored: Any, role: Role) -> None:
    """Rows of the first version have none; only the node's own user began more than an operator may."""
    assert former_caller(principal, stored) == Caller(principal=principal, role=role)


async def test_a_step_is_written_with_its_notes_before_it_counts() -> None:
    written: list[tuple[str, dict[str, Any], int]] = []

    async def save(active: ActiveOperation) -> None:
        written.append((active.step_name, dict(active.notes), active.progress.done))

    asked = Asked(key="k", target="one", caller=LOCAL_ADMIN, request=None)
    active = ActiveOperation("op-1", "create_vm", asked, save=save, publish=lambda _: None)
    await active.step("choose", port=80)
    await active.step("keep")
    assert written == [("choose", {"port": 80}, 0), ("keep", {"port": 80}, 1)]
    assert (active.progress.done, active.progress.message) == (2, "keep")


def test_begun_operations_are_forgotten_after_a_minute() -> None:
    pace, limits = Pace(), Limits(operations_per_minute=2)
    for now in (0.0, 30.0):
        pace.begin("p", limits, now)
        pace.end("p")
    with pytest.raises(RateLimited) as refused:
        pace.begin("p", limits, 59.5)
    assert refused.value.details["retry_after"] == 1
    pace.begin("p", limits, 60.0)
    pace.end("p")
    with pytest.raises(RateLimited) as refused:
        pace.begin("p", limits, 60.0)
    assert refused.value.details["retry_after"] == 31


def test_each_operation_that_ends_gives_back_one() -> None:
    pace, limits = Pace(), Limits(operations_at_once=2)
    pace.begin("p", limits, 0.0)
    pace.begin("p", limits, 0.0)
    pace.end("p")
    pace.begin("p", limits, 0.0)
    with pytest.raises(RateLimited) as refused:
        pace.begin("p", limits, 0.0)
    assert refused.value.details["retry_after"] == 1
