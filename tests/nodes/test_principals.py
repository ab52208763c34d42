"""Principals travel: at a peer, a token is itself, and neither its node's user nor another token (SECURITY.md)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, eventually, open_fleet
from tests.stopwatch import within
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from twinshare.protocols.errors import (
    Forbidden,
    IdempotencyMismatch,
    InsufficientResources,
    QuotaExceeded,
    RateLimited,
    VmExists,
)
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.vm import ForwardSpec

PORT = ForwardSpec(host_port=0, guest_port=80)
CI = Caller(principal="token:ci", role=Role.OPERATOR)
OTHER = Caller(principal="token:other", role=Role.OPERATOR)


async def test_a_token_changes_at_a_peer_only_what_it_made_there(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (b, a)):
        mine = await call(a, "create_vm", "node-0", CI, spec=spec("mine"))
        assert mine.owner == f"{a.peer_id}/token:ci"
        assert (await call(a, "create_vm", "node-0", spec=spec("users"))).owner == a.peer_id
        await call(a, "create_vm", "node-0", OTHER, spec=spec("others"))
        await call(b, "create_vm", spec=spec("theirs"))
        for name in ("users", "others", "theirs"):
            for method in ("start_vm", "delete_vm"):
                with pytest.raises(Forbidden):
                    await call(a, method, "node-0", CI, vm=name)
            with pytest.raises(Forbidden):
                async with a.console(CI, name, "node-0"):
                    pass
            with pytest.raises(Forbidden):
                await call(a, "add_forward", "node-0", CI, vm=name, forward=PORT)
        assert (await call(a, "start_vm", "node-0", CI, vm="mine")).status == "running"
        assert (await call(a, "delete_vm", "node-0", vm="others")).name == "others"


async def test_the_limits_of_a_peer_hold_for_all_that_it_asks_for_others(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR, limits=Limits(vms=2)) as (_, (_, a)):
        await call(a, "create_vm", "node-0", CI, spec=spec("one"))
        await call(a, "create_vm", "node-0", OTHER, spec=spec("two"))
        for caller in (CI, OTHER, Caller(principal="token:new", role=Role.OPERATOR)):
            with pytest.raises(QuotaExceeded, match=a.peer_id):
                await call(a, "create_vm", "node-0", caller, spec=spec("three"))


def with_key(principal: str, role: Role, key: str = "the-key") -> Caller:
    return Caller(principal=principal, role=role, idempotency_key=key)


async def test_each_principal_has_idempotency_keys_of_its_own(tmp_path: Path) -> None:
    """An admin was answered with the VM that an operator had made under the same key, and still owned."""
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (b, a)):
        for node, peer in ((b, None), (a, "node-0")):
            where = "there" if peer else "here"
            first = await call(node, "create_vm", peer, with_key("token:ci", Role.OPERATOR), spec=spec(f"one-{where}"))
            other = await call(node, "create_vm", peer, with_key("token:x", Role.OPERATOR), spec=spec(f"two-{where}"))
            admins = await call(
                node, "create_vm", peer, with_key("local", Role.ADMIN, where), spec=spec(f"three-{where}")
            )
            assert len({first.id, other.id, admins.id}) == 3
            again = await call(node, "create_vm", peer, with_key("token:ci", Role.OPERATOR), spec=spec(f"one-{where}"))
            assert again.id == first.id
            with pytest.raises(VmExists):
                await call(node, "create_vm", peer, with_key("local", Role.ADMIN), spec=spec(f"one-{where}"))
            with pytest.raises(IdempotencyMismatch) as refused:
                await call(node, "create_vm", peer, with_key("token:ci", Role.OPERATOR), spec=spec("else"))
            assert refused.value.details["key"] == "the-key"
        shown = {operation.idempotency_key for operation in await b.operations.list()}
        assert "the-key" in shown
        assert not any("\n" in key for key in shown)


async def test_the_pace_of_a_peer_holds_for_all_that_it_asks_for_others(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR, limits=Limits(operations_per_minute=2)) as (_, (_, a)):
        await call(a, "create_vm", "node-0", CI, spec=spec("one"))
        await call(a, "create_vm", "node-0", OTHER, spec=spec("two"))
        with pytest.raises(RateLimited):
            await call(a, "create_vm", "node-0", Caller(principal="token:new", role=Role.OPERATOR), spec=spec("three"))


async def test_a_tunnel_ends_with_the_token_that_opened_it(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (_, a)):
        await a.tokens.create(TokenRequest(name="ci"))
        await call(a, "create_vm", "node-0", CI, spec=spec("mine", start=True))
        await call(a, "create_vm", "node-0", spec=spec("users", start=True))
        theirs = await call(a, "add_forward", "node-0", CI, vm="mine", forward=PORT)
        ours = await call(a, "add_forward", "node-0", vm="users", forward=PORT)
        async with await trio.open_tcp_stream("127.0.0.1", theirs.host_port) as stream:
            await a.tokens.revoke("ci")
            with within(1.5):
                assert await _ended(stream)
        await eventually(lambda: _closed(theirs.host_port))
        assert [tunnel.spec.host_port for tunnel in a.tunnels.kept.values()] == [ours.host_port]


async def test_what_a_jwt_opened_ends_with_it(tmp_path: Path) -> None:
    """A tunnel and a ticket: what outlives the request that asked for it."""
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (_, a)):
        await call(a, "create_vm", "node-0", spec=spec("users", start=True))
        passing = Caller(principal="oidc:ada", role=Role.ADMIN, until=time.time() + 3)
        made = await call(a, "add_forward", "node-0", passing, vm="users", forward=PORT)
        ours = await call(a, "add_forward", "node-0", vm="users", forward=PORT)
        await call(a, "invite_peer", None, passing, invite=InviteRequest())
        assert a.mesh.context.tickets.live
        async with await trio.open_tcp_stream("127.0.0.1", made.host_port) as stream:
            with trio.fail_after(30):
                assert await _ended(stream)
        assert passing.until is not None
        assert -0.1 < time.time() - passing.until < 10
        await eventually(lambda: _closed(made.host_port))
        assert [tunnel.spec.host_port for tunnel in a.tunnels.kept.values()] == [ours.host_port]
        assert not a.mesh.context.tickets.live


async def test_a_full_disk_keeps_no_port_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: str) -> None:
        raise InsufficientResources("the disk of the node is full")

    async with open_fleet(tmp_path, Role.ADMIN) as (_, (_, a)):
        await a.tokens.create(TokenRequest(name="ci"))
        await call(a, "create_vm", "node-0", CI, spec=spec("mine", start=True))
        made = await call(a, "add_forward", "node-0", CI, vm="mine", forward=PORT)
        monkeypatch.setattr(a.tunnels.store, "drop", full)
        await a.tokens.revoke("ci")
        await eventually(lambda: _closed(made.host_port))
        assert a.tunnels.kept == {}


async def _ended(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


async def _closed(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return True
    return False


async def test_only_the_owner_and_admins_read_what_a_guest_says_and_shows(tmp_path: Path) -> None:
    reader = Caller(principal="token:eyes", role=Role.VIEWER)
    async with open_fleet(tmp_path, Role.VIEWER) as (_, (a, b)):
        await call(a, "create_vm", None, CI, spec=spec("mine", start=True))
        for method in ("vm_log", "vm_screenshot"):
            for node, peer, caller in ((a, None, reader), (a, None, OTHER), (b, "node-0", LOCAL_ADMIN)):
                with pytest.raises(Forbidden, match="need the role admin"):
                    await call(node, method, peer, caller, vm="mine")
            await call(a, method, None, CI, vm="mine")
            await call(a, method, vm="mine")
