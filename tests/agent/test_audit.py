"""What a node's audit log holds of the calls that change something, and how long."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.agent.nodes import open_test_node, spec
from twinshare.agent import limits
from twinshare.agent.audit import log as audit_log
from twinshare.agent.audit.chain import Broken, Entry
from twinshare.agent.audit.reading import newest, verify
from twinshare.agent.limits import AccountLimits, Share
from twinshare.agent.node import Node
from twinshare.agent.state import State, open_state
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, InsufficientResources, TwinshareError, VmNotFound
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods

TABLE = all_methods(SERVICES)
VIEWER = Caller(principal="token:eyes", role=Role.VIEWER)
PATIENT = Caller(principal="local", role=Role.ADMIN, detach=True)


def limit_share(monkeypatch: pytest.MonkeyPatch, share: Share, *, own: bool) -> None:
    """Let the node's own user, or every other account, have this share."""
    monkeypatch.setattr(limits, "OWN_LIMITS" if own else "LIMITS", AccountLimits(audit_log=share))


async def call(node: Node, name: str, caller: Caller = LOCAL_ADMIN, **arguments: Any) -> Any:
    return await node.call(caller, TABLE[name], arguments)


def entries(folder: Path) -> list[Entry]:
    return [entry for _, entry in newest(folder / "twinshare.db", 1000)]


def rows_of(folder: Path) -> list[tuple[str, str, str, str]]:
    return [(entry.principal, entry.what, entry.on, entry.outcome) for entry in entries(folder)]


async def until_rows(folder: Path, count: int) -> list[tuple[str, str, str, str]]:
    """An outcome is written behind its answer."""
    with trio.fail_after(60):
        while len(rows_of(folder)) < count:
            await trio.sleep(0.01)
    return rows_of(folder)


async def test_rows_that_nobody_waits_for_are_written_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of each call, and each refusal of a peer, was a wait for the disk, and changes waited behind it."""
    monkeypatch.setattr(audit_log, "LATER", 3600.0)
    async with open_state(tmp_path / "twinshare.db", [audit_log.SCHEMA]) as state:
        async with audit_log.open_audit(state, bytes(32)) as audit, trio.open_nursery() as nursery:

            async def refused() -> None:
                with pytest.raises(Forbidden):
                    async with audit.record(VIEWER, "delete_vm", "web", will_be_refused=True):
                        raise Forbidden("a viewer changes nothing")

            with trio.fail_after(60):
                for number in range(3):
                    async with audit.record(LOCAL_ADMIN, "start_vm", str(number)):
                        pass
                for _ in range(20):
                    nursery.start_soon(refused)
                await trio.testing.wait_all_tasks_blocked()
                before = [("local", str(n), end) for n in range(3) for end in ("", "done")][:-1]
                assert [(who, on, end) for who, _, on, end in rows_of(tmp_path)] == before
                async with audit.record(LOCAL_ADMIN, "start_vm", "3"):
                    assert len(rows_of(tmp_path)) == 6 + 20 + 1
        assert sum(outcome == "forbidden" for *_, outcome in rows_of(tmp_path)) == 20


async def test_each_change_has_a_beginning_and_an_outcome(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        before = len(await until_rows(tmp_path, 2))
        await call(node, "create_vm", spec=spec("web"))
        with pytest.raises(Forbidden):
            await call(node, "delete_vm", VIEWER, vm="web")
        with pytest.raises(VmNotFound):
            await call(node, "start_vm", vm="none")
        await call(node, "list_vms")
        rows = (await until_rows(tmp_path, before + 7))[before:]
        assert rows[:2] == [("local", "create_vm", "web", ""), ("local", "create_vm", "web", "done")]
        assert sorted(rows[2:]) == sorted([
            ("local", "create_vm", "web", "done"),
            ("token:eyes", "delete_vm", "web", ""),
            ("token:eyes", "delete_vm", "web", "forbidden"),
            ("local", "start_vm", "none", ""),
            ("local", "start_vm", "none", "vm_not_found"),
        ])  # fmt: skip
        calls = [entry.call for entry in entries(tmp_path)[before:]]
        assert len(set(calls)) == 4, "three calls, and the operation of one"
    assert verify(tmp_path / "twinshare.db", node.peer_id)[1].number == before + 7


async def test_a_detached_call_is_followed_to_its_end(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        before = len(await until_rows(tmp_path, 2))
        with pytest.raises(Detached) as detached:
            await call(node, "create_vm", PATIENT, spec=spec("web"))
        id = detached.value.operation.id
        await until_rows(tmp_path, before + 3)
        begun, *later = entries(tmp_path)[before:]
        assert (begun.what, begun.on, begun.outcome) == ("create_vm", "web", "")
        assert {(entry.call, entry.outcome) for entry in later} == {(begun.call, f"operation {id}"), (id, "done")}


async def test_a_bug_is_another_outcome_than_a_caller_who_left(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        before = len(await until_rows(tmp_path, 2))
        with pytest.raises(ZeroDivisionError):
            async with node.audit.record(LOCAL_ADMIN, "stumble"):
                raise ZeroDivisionError
        with trio.CancelScope() as scope:
            async with node.audit.record(LOCAL_ADMIN, "leave"):
                scope.cancel()
                await trio.sleep_forever()
        rows = (await until_rows(tmp_path, before + 4))[before:]
        assert [(what, outcome) for _, what, _, outcome in rows if outcome] == [
            ("stumble", "internal"), ("leave", "interrupted"),
        ]  # fmt: skip


async def test_what_a_former_life_began_has_its_end_in_this_one(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        await vms.create_vm(spec("web"))
        node.operations.close_timeout = 0.05
        hypervisor.behaviour.delay = 60
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(call, node, "start_vm", vm="web"))
            with trio.fail_after(60):
                while rows_of(tmp_path)[-1:] != [("local", "start_vm", "web", "")]:
                    await trio.sleep(0.01)
                while not await node.operations.list(OperationState.RUNNING):  # the row is there before its operation
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    begun = rows_of(tmp_path)
    assert begun[-2:] == [("local", "start_vm", "web", ""), ("local", "start_vm", "web", "interrupted")]
    async with open_test_node(tmp_path):
        with trio.fail_after(60):
            while not [row for row in rows_of(tmp_path)[len(begun) :] if row[:3] == ("local", "start_vm", "web")]:
                await trio.sleep(0.01)


async def test_no_secret_is_kept_of_what_this_nodes_users_ask(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        made = await call(node, "create_token", token=TokenRequest(name="ci"))
        for name, more in (("invite_peer", {"invite": InviteRequest()}), ("join_fleet", {"ticket": "ts1-secret"})):
            with pytest.raises(TwinshareError):
                await call(node, name, **more)
    rows = entries(tmp_path)
    assert ("create_token", "ci") in {(entry.what, entry.on) for entry in rows}
    assert {"invite_peer", "join_fleet"} <= {entry.what for entry in rows}
    with sqlite3.connect(tmp_path / "twinshare.db") as db:
        kept = b"".join(row[0] for row in db.execute("SELECT content FROM audit"))
    db.close()
    assert made.secret.encode() not in kept
    assert b"ts1-secret" not in kept


@dataclass
class Disk:
    """Whether the disk is full."""

    full: bool = True


def full_for_the_audit_log(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Refuse what the audit log writes, for as long as the disk is said to be full."""
    real, disk = State.transact, Disk()

    async def transact(self: State, work: Any) -> Any:
        if disk.full and "AuditLog" in work.__qualname__:
            raise InsufficientResources("the disk of the node is full")
        return await real(self, work)

    monkeypatch.setattr(State, "transact", transact)
    return disk


async def test_a_full_disk_delays_the_rows_and_hinders_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec("web"))
        before = await until_rows(tmp_path, 3)
        disk = full_for_the_audit_log(monkeypatch)
        await call(node, "delete_vm", vm="web")
        assert rows_of(tmp_path) == before
        disk.full = False
        await call(node, "prune_images", all=False)
        rows = (await until_rows(tmp_path, len(before) + 6))[len(before) :]
        assert rows[0] == ("local", "delete_vm", "web", "")
        assert ("local", "delete_vm", "web", "done") in rows
    verify(tmp_path / "twinshare.db", node.peer_id)


@pytest.mark.expects_errors
async def test_what_waits_for_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "MAX_WAITING", 0)
    async with open_test_node(tmp_path) as (node, _, _):
        made = await call(node, "create_token", token=TokenRequest(name="ci"))
        assert made.secret
        assert rows_of(tmp_path) == []


async def test_the_older_half_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_share(monkeypatch, Share(10, 1 << 20), own=True)
    database = tmp_path / "twinshare.db"
    async with open_test_node(tmp_path) as (node, _, _):
        first = verify(database, node.peer_id)[1]
        for number in range(12):
            await call(node, "create_token", token=TokenRequest(name=f"t{number}"))
    rows, last = verify(database, node.peer_id)
    assert 0 < rows <= 10 < last.number
    with pytest.raises(Broken, match="dropped for its age"):
        verify(database, node.peer_id, first)
    limit_share(monkeypatch, Share(1000, 600), own=True)
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="more"))
    fewer, _ = verify(database, node.peer_id, last)
    assert fewer < rows


async def test_an_account_that_floods_the_log_drops_only_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_share(monkeypatch, Share(20, 1 << 20), own=False)
    database = tmp_path / "twinshare.db"

    async def refused(node: Node, caller: Caller, vm: str) -> None:
        with pytest.raises(Forbidden):
            await call(node, "delete_vm", caller, vm=vm)

    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="kept"))
        other = Caller(principal="token:other", role=Role.VIEWER)
        for number in range(30):
            if number % 5 == 0:
                await refused(node, other, "others")
            await refused(node, VIEWER, "flood")
        await until_rows(tmp_path, 1)
    verify(database, node.peer_id)
    rows = rows_of(tmp_path)
    assert sum(row[0] == "token:eyes" for row in rows) <= 20
    assert sum(row[0] == "token:other" for row in rows) == 12
    assert ("local", "create_token", "kept", "done") in rows


async def test_all_that_a_peer_asks_for_others_is_its_own_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_share(monkeypatch, Share(20, 1 << 20), own=False)
    async with open_test_node(tmp_path) as (node, _, _):
        for number in range(30):
            caller = Caller(principal=f"12D3KooWpeer/token:t{number}", role=Role.VIEWER, from_peer=True)
            with pytest.raises(Forbidden):
                await call(node, "delete_vm", caller, vm="flood")
    assert sum(row[0].startswith("12D3") for row in rows_of(tmp_path)) <= 20
    verify(tmp_path / "twinshare.db", node.peer_id)


async def test_the_floor_of_a_log_of_the_first_version_becomes_a_gap(tmp_path: Path) -> None:
    database = tmp_path / "twinshare.db"
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="one"))
    with sqlite3.connect(database) as db:
        (hash,) = db.execute("SELECT hash FROM audit WHERE number = 2").fetchone()
        db.execute("DELETE FROM audit WHERE number <= 2")
        db.execute("DELETE FROM audit_accounts")
        db.execute("INSERT INTO audit_ends VALUES ('floor', 2, ?, ?, 0)", (hash, bytes(64)))
    db.close()
    with pytest.raises(Broken, match="row 1 is missing"):
        verify(database, node.peer_id)
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="two"))
    rows, last = verify(database, node.peer_id)
    assert rows == last.number - 2


async def test_a_log_that_was_put_back_is_found_by_what_was_seen(tmp_path: Path) -> None:
    database = tmp_path / "twinshare.db"
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="one"))
    old = database.read_bytes()
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="two"))
    _, seen = verify(database, node.peer_id)
    verify(database, node.peer_id, seen)
    database.write_bytes(old)
    verify(database, node.peer_id)
    with pytest.raises(Broken, match="was replaced"):
        verify(database, node.peer_id, seen)


@pytest.mark.expects_errors
@pytest.mark.parametrize("harm", ["DELETE FROM audit_ends", "DELETE FROM audit WHERE number > 2", "DELETE FROM audit"])
async def test_a_node_goes_on_behind_a_log_that_was_tampered_with(tmp_path: Path, harm: str) -> None:
    database = tmp_path / "twinshare.db"
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="one"))
    with sqlite3.connect(database) as db:
        db.execute(harm)
    db.close()
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_token", token=TokenRequest(name="two"))
    assert rows_of(tmp_path)[-1] == ("local", "create_token", "two", "done")
    with pytest.raises(Broken):
        verify(database, node.peer_id)
