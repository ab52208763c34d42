"""Audit logs of nodes in one fleet: who asked for it there, and what was asked of others here."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.agent.nodes import spec
from tests.agent.test_audit import entries
from tests.nodes.test_in_memory import TABLE, call, eventually, open_fleet
from twinshare.agent.audit.chain import Entry
from twinshare.agent.audit.reading import verify
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden


def of(node: Node, what: str) -> list[Entry]:
    return [entry for entry in entries(node.home.path) if entry.what == what]


async def test_both_ends_write_down_a_far_call(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await call(a, "create_vm", "node-1", spec=spec("far"))
        there = of(b, "create_vm")
        assert [(row.principal, row.on, row.at_peer, row.outcome) for row in there[:1]] == [(a.peer_id, "far", "", "")]
        arguments = TABLE["create_vm"].unpack(there[0].request)
        assert arguments["spec"].name == "far"
        await eventually(lambda: _ended(b, "create_vm", there[0].call))
        here = of(a, "create_vm")
        assert {(row.principal, row.on, row.at_peer) for row in here} == {("local", "far", "node-1")}
        assert not any(row.request for row in here)
        joined = of(a, "join")
        assert {(row.principal, row.on) for row in joined} == {(b.peer_id, "node-1 as admin")}
    for node in (a, b):
        verify(node.home.database, node.peer_id)


async def _ended(node: Node, what: str, call: str) -> bool:
    return any(row.call == call and row.outcome == "done" for row in of(node, what))


async def test_what_a_peer_may_not_do_is_written_down_as_it_came(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.VIEWER) as (_, (a, b)):
        line = b.mesh.require_running().calls
        for name, arguments in (("delete_vm", {"vm": "one"}), ("revoke_token", {"name": "ci"})):
            with pytest.raises(Forbidden):
                await line.call(a.peer_id, TABLE[name], arguments, LOCAL_ADMIN)
            await eventually(partial(_count, a, name, 2))
            begun, ended = of(a, name)
            assert (begun.principal, begun.on, ended.outcome) == (
                b.peer_id,
                next(iter(arguments.values())),
                "forbidden",
            )
            assert begun.request == TABLE[name].pack(arguments)


async def test_little_is_kept_of_a_large_call_that_is_refused(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.VIEWER) as (_, (a, b)):
        calls = b.mesh.require_running().calls
        large = spec("web", labels={f"k{number}": "x" * 200 for number in range(60)})
        with pytest.raises(Forbidden):
            await calls.call(a.peer_id, TABLE["create_vm"], {"spec": large}, LOCAL_ADMIN)
        await eventually(partial(_count, a, "create_vm", 2))
        begun, ended = of(a, "create_vm")
        assert (begun.principal, ended.outcome) == (b.peer_id, "forbidden")
        assert begun.request == TABLE["create_vm"].pack({"spec": large})[:1024]


async def test_a_console_is_a_row_at_both_ends(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await call(b, "create_vm", spec=spec("web", start=True))
        async with a.console(LOCAL_ADMIN, "web", "node-1"):
            assert [(row.principal, row.on) for row in of(b, "open_console")] == [(a.peer_id, "web")]
        with pytest.raises(Forbidden):
            async with a.console(Caller(principal="token:eyes", role=Role.VIEWER), "web", "node-1"):
                raise AssertionError("opened")
        await eventually(lambda: _count(a, "open_console", 4))
        assert [(row.principal, row.at_peer, row.outcome) for row in of(a, "open_console")] == [
            ("local", b.peer_id, ""), ("local", b.peer_id, "done"),
            ("token:eyes", b.peer_id, ""), ("token:eyes", b.peer_id, "forbidden"),
        ]  # fmt: skip


async def _count(node: Node, what: str, count: int) -> bool:
    return len(of(node, what)) >= count
