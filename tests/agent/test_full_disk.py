"""What is kept for a full disk, and what an operation leaves whose end could not be written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from twinshare.agent.database import Database
from twinshare.agent.disk_reserve import SIZE, STEP, DiskReserve
from twinshare.agent.journal import journal
from twinshare.agent.journal.active import ActiveOperation
from twinshare.agent.journal.store import JournalStore
from twinshare.protocols.errors import InsufficientResources, Overloaded
from twinshare.protocols.operation import OperationState
from twinshare.protocols.vm import VmChange, VmStatus


def states(file: Path, kind: str) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return [state for (state,) in db.execute("SELECT state FROM operations WHERE kind = ?", (kind,))]


class SmallDisk:
    """How much a reserve finds free, as a full disk says it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        monkeypatch.setattr(DiskReserve, "free", lambda reserve: self.free)


async def test_the_reserve_is_given_back_in_parts_and_allocated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, file = SmallDisk(monkeypatch, 1 << 40), tmp_path / "reserve"
    DiskReserve(tmp_path).open()
    assert file.stat().st_blocks * 512 >= SIZE
    disk.free = 0
    reserve = DiskReserve(tmp_path)
    reserve.open()
    assert file.stat().st_size == SIZE - STEP
    for left in (SIZE - 2 * STEP, SIZE - 3 * STEP, 0, 0):
        await reserve.make_room()
        assert file.stat().st_size == left
    with pytest.raises(InsufficientResources, match="kept for deletions"):
        await reserve.require()
    assert reserve.problems()
    disk.free = SIZE  # nothing would be left besides
    with pytest.raises(InsufficientResources):
        await reserve.require()
    disk.free = SIZE + STEP
    await reserve.require()
    await reserve.make_room()
    assert file.stat().st_blocks * 512 >= SIZE
    assert reserve.problems() == []


async def test_of_what_is_kept_only_what_makes_room_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SmallDisk(monkeypatch, 1 << 40)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        disk.free = 0
        await vms.stop_vm("one", force=True)
        for _ in range(2):
            with pytest.raises(InsufficientResources, match="kept for deletions"):
                await vms.update_vm("one", change=VmChange(labels={"a": "b"}))
        await vms.delete_vm("one")
        assert states(node.home.database, "update_vm") == []
        assert states(node.home.database, "delete_vm") == ["done"]


async def test_an_end_that_could_not_be_written_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, full = Database.transact, False

    async def transact(database: Database, work: object) -> object:
        if full:
            raise InsufficientResources("the disk of the node is full")
        return await plain(database, work)  # type: ignore[arg-type]  # as it was given

    monkeypatch.setattr(Database, "transact", transact)
    async with open_test_node(tmp_path) as (node, vms, _):
        file = node.home.database
        await vms.create_vm(spec(start=True))
        full = True
        async with node.events.subscribe() as events:
            await vms.stop_vm("one", force=True)
            while (event := await events.receive()).type != "op.done":
                pass
        assert (await node.operations.get(event.data["id"])).state is OperationState.DONE
        assert states(file, "stop_vm") == []
        full = False
        with trio.fail_after(60):
            while states(file, "stop_vm") != ["done"]:
                await trio.sleep(0.05)


async def test_nothing_is_begun_while_many_ends_wait_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is kept in memory until then."""
    plain = JournalStore.write_end

    async def write_end(store: JournalStore, active: ActiveOperation) -> None:
        raise InsufficientResources("the disk of the node is full")

    monkeypatch.setattr(journal, "MAX_RUNNING", 3)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        monkeypatch.setattr(JournalStore, "write_end", write_end)
        for number in range(3):
            await vms.update_vm("one", change=VmChange(labels={"n": str(number)}))
        with pytest.raises(Overloaded):
            await vms.update_vm("one", change=VmChange(labels={"n": "3"}))
        monkeypatch.setattr(JournalStore, "write_end", plain)
        with trio.fail_after(60):
            while states(node.home.database, "update_vm") != ["done"] * 3:
                await trio.sleep(0.05)
        await vms.update_vm("one", change=VmChange(labels={"n": "3"}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE operations SET state = 'running' WHERE kind = 'stop_vm'", "a later operation has followed"),
        ("DELETE FROM operations WHERE kind = 'start_vm'", "was started after this was asked"),
    ],
)
async def test_an_old_stop_stops_no_vm_that_was_started_since(tmp_path: Path, change: str, reason: str) -> None:
    uri = f"fake://{tmp_path}/fake.json"
    async with open_test_node(tmp_path, uri=uri) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        await vms.stop_vm("one", force=True)
        await vms.start_vm("one")
    with closing(sqlite3.connect(node.home.database)) as db, db:
        db.execute("UPDATE operations SET state = 'running', result = NULL WHERE kind = 'stop_vm'")
        db.execute(change)
    async with open_test_node(tmp_path, uri=uri) as (node, vms, _):
        (stop,) = [one for one in await node.operations.list() if one.kind == "stop_vm"]
        ended = await node.operations.wait(stop.id, 10)
        assert (ended.state, ended.error and ended.error.code) == (OperationState.FAILED, "operation_cancelled")
        assert reason in str(ended.error)
        assert (await vms.get_vm("one")).status is VmStatus.RUNNING
