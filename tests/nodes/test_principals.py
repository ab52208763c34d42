"""Principals travel: at a peer, a token is itself, and neither its node's user nor another token (SECURITY.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, open_fleet
from twinshare.protocols.access import Caller, Limits, Role
from twinshare.protocols.errors import Forbidden, QuotaExceeded
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
