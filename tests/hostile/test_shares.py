"""What everybody shares has a part for each: whoever fills a table loses its own, and takes nobody else's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec, vms_of
from tests.agent.test_audit import call, full_for_the_audit_log, rows_of, until_rows
from tests.nodes.test_in_memory import call as call_in_fleet
from tests.nodes.test_in_memory import open_fleet
from twinshare.agent.audit import log as audit_log
from twinshare.agent.audit.chain import Entry
from twinshare.agent.audit.reading import verify
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.journal import journal
from twinshare.agent.limits import RESERVED_PART
from twinshare.agent.reach.operations import add_tunnel
from twinshare.api.rest.sessions import KEPT, Sessions
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, Overloaded
from twinshare.protocols.operation import Detached
from twinshare.protocols.vm import ForwardSpec

FLOOD = Caller(principal="oidc:flood", role=Role.ADMIN)
VIEWER = Caller(principal="token:flood", role=Role.VIEWER)
PORT = ForwardSpec(host_port=0, guest_port=80)


def test_a_principal_that_opens_sessions_loses_its_own() -> None:
    """A viewer's token could push out the session of the node's user with 256 links."""
    sessions = Sessions()
    users_link = sessions.invite(LOCAL_ADMIN, 0.0)
    users = sessions.enter(sessions.invite(LOCAL_ADMIN, 0.0), 0.0)
    assert users is not None
    links = [sessions.invite(VIEWER, 0.0) for _ in range(2 * KEPT)]
    assert [sessions.enter(link, 1.0) for link in links[:KEPT]] == [None] * KEPT
    for _ in range(2 * KEPT):
        assert sessions.enter(sessions.invite(VIEWER, 1.0), 1.0) is not None
    assert len(sessions.list(1.0)) == KEPT + 1
    assert sessions.find(users, 1.0) is not None
    assert sessions.enter(users_link, 1.0) is not None


@pytest.mark.expects_errors
async def test_refused_calls_do_not_lose_the_rows_of_others_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "MAX_WAITING", 40)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec("web"))
        await until_rows(tmp_path, 3)
        disk = full_for_the_audit_log(monkeypatch)
        for _ in range(40):
            with pytest.raises(Forbidden):
                await call(node, "delete_vm", VIEWER, vm="web")
        await call(node, "delete_vm", vm="web")
        disk.full = False
        await call(node, "prune_images", all=False)
        with trio.fail_after(30):
            while ("local", "delete_vm", "web", "done") not in rows_of(tmp_path):
                await trio.sleep(0.01)
        assert ("local", "delete_vm", "web", "") in rows_of(tmp_path)
        assert 0 < sum(row[0] == "token:flood" for row in rows_of(tmp_path)) <= 4
    verify(tmp_path / "twinshare.db", node.peer_id)


async def test_many_rows_are_signed_and_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that waited was signed at once, on the event loop, and again with each row that came to a full disk."""
    monkeypatch.setattr(audit_log, "MAX_BATCH", 4)
    async with open_test_node(tmp_path) as (node, _, _), trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(Forbidden):
                await call(node, "delete_vm", VIEWER, vm="web")

        for _ in range(30):
            nursery.start_soon(refused)
        rows = [Entry(at=0.0, call=str(number), principal="local", what="x") for number in range(10)]
        tried = [node.audit.note(row) for row in rows]
        with trio.fail_after(30):
            for each in tried:
                await each.wait()
    assert sum(row[0] == "token:flood" for row in rows_of(tmp_path)) == 60
    verify(tmp_path / "twinshare.db", node.peer_id)


async def test_operations_of_others_leave_an_account_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_RUNNING", RESERVED_PART)
    go_on, plain = trio.Event(), MemoryHypervisor.start

    async def start(hypervisor: MemoryHypervisor, id: str) -> None:
        await go_on.wait()
        await plain(hypervisor, id)

    async with open_test_node(tmp_path) as (node, vms, _):
        for number in range(RESERVED_PART + 1):
            await vms.create_vm(spec(f"vm-{number}"))
        await vms.create_vm(spec("users"))
        monkeypatch.setattr(MemoryHypervisor, "start", start)
        flood = vms_of(node, Caller(principal="token:flood", role=Role.ADMIN, detach=True))
        for number in range(RESERVED_PART):
            with pytest.raises(Detached):
                await flood.start_vm(f"vm-{number}")
        with pytest.raises(Overloaded):
            await flood.start_vm(f"vm-{RESERVED_PART}")
        assert (await vms.delete_vm("users")).name == "users"
        go_on.set()


async def test_tunnels_of_others_leave_a_principal_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_tunnel, "MAX_KEPT", RESERVED_PART)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (_, a)):
        await call_in_fleet(a, "create_vm", "node-0", FLOOD, spec=spec("theirs", start=True))
        for _ in range(RESERVED_PART):
            await call_in_fleet(a, "add_forward", "node-0", FLOOD, vm="theirs", forward=PORT)
        with pytest.raises(Forbidden, match="tunnels at most"):
            await call_in_fleet(a, "add_forward", "node-0", FLOOD, vm="theirs", forward=PORT)
        ours = await call_in_fleet(a, "add_forward", "node-0", vm="theirs", forward=PORT)
        assert ours.active
