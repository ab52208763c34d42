"""Which node a reference to a VM means, for callers of the API: NAME@NODE, and the only one of a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.agent.nodes import spec
from tests.agent.test_consoles import hear
from tests.nodes.test_in_memory import call, keyed, open_fleet
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import AmbiguousName, InvalidRequest, P2pStopped, PeerNotFound, VmNotFound
from twinshare.protocols.operation import Detached
from twinshare.protocols.vm import ForwardSpec

ADMINS = (Role.ADMIN, Role.ADMIN)


async def test_a_vm_of_another_node_is_found_by_its_name(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, *ADMINS) as (_, (a, b, c)):
        made = await call(b, "create_vm", spec=spec("far"))
        for ref in ("far", made.id, "far@node-1", f"{made.id}@{b.peer_id}"):
            found = await call(a, "get_vm", vm=ref)
            assert (found.id, found.node) == (made.id, "node-1")
        assert (await call(a, "start_vm", vm="far")).status == "running"
        assert (await call(a, "get_vm", "node-1", vm="far@node-1")).id == made.id
        forward = await call(a, "add_forward", vm="far", forward=ForwardSpec(host_port=0, guest_port=80))
        assert await call(a, "list_forwards", vm="far@node-1") == [forward]
        assert await call(b, "list_forwards", vm="far") == []
        await call(a, "remove_forward", vm="far", host_port=forward.host_port)
        async with a.console(LOCAL_ADMIN, "far") as one, c.console(LOCAL_ADMIN, "far@node-1") as two:
            await one.send(b"hello")
            assert [await hear(one, 5), await hear(two, 5)] == [b"hello"] * 2


async def test_the_vm_of_this_node_comes_first(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        here = await call(a, "create_vm", spec=spec("web"))
        there = await call(b, "create_vm", spec=spec("web"))
        assert (await call(a, "get_vm", vm="web")).id == here.id
        assert (await call(a, "get_vm", vm="web@node-0")).id == here.id
        assert (await call(a, "get_vm", vm="web@local")).id == here.id
        assert (await call(a, "get_vm", vm="web@node-1")).id == there.id


async def test_several_of_a_name_are_listed(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, *ADMINS) as (_, (a, b, c)):
        for node in (b, c):
            await call(node, "create_vm", spec=spec("web"))
        with pytest.raises(AmbiguousName, match="'web@node-1' or 'web@node-2'") as ambiguous:
            await call(a, "stop_vm", vm="web")
        assert ambiguous.value.details == {"candidates": ["web@node-1", "web@node-2"]}


async def test_nothing_is_destroyed_on_another_node_by_a_bare_name(tmp_path: Path) -> None:
    """A delete that is sent again must not delete the VM of that name on another node."""
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        for node in (a, b):
            await call(node, "create_vm", spec=spec("web"))
        await call(a, "delete_vm", vm="web")
        for caller, name, more in (
            (LOCAL_ADMIN, "delete_vm", {}),
            (LOCAL_ADMIN, "capture_image", {"name": "copy"}),
            (keyed("later", detach=True), "start_vm", {}),
        ):
            with pytest.raises(VmNotFound, match="ask for 'web@node-1'"):
                await call(a, name, caller=caller, vm="web", **more)
        with pytest.raises(VmNotFound):
            await call(a, "get_vm", "local", vm="web")
        with pytest.raises(Detached):
            await call(a, "start_vm", caller=keyed("there", detach=True), vm="web@node-1")
        await call(a, "delete_vm", vm="web@node-1", force=True)
        assert await call(b, "list_vms") == []


@pytest.mark.parametrize(
    ("vm", "peer", "error"),
    [
        ("web@", None, InvalidRequest),
        ("@node-1", None, InvalidRequest),
        ("web@node-9", None, PeerNotFound),
        ("web@node-1", "node-0", InvalidRequest),
        ("none", None, VmNotFound),
        ("none@node-1", None, VmNotFound),
    ],
)
async def test_what_is_wrong_is_said(tmp_path: Path, vm: str, peer: Any, error: type[Exception]) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await call(b, "create_vm", spec=spec("web"))
        with pytest.raises(error):
            await call(a, "get_vm", peer, vm=vm)


async def test_an_unknown_node_is_not_found_while_p2p_services_are_stopped(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, _b)):
        await call(a, "stop_p2p")
        with pytest.raises(PeerNotFound):
            await call(a, "get_vm", vm="web@node-9")
        with pytest.raises(P2pStopped):
            await call(a, "get_vm", vm="web@node-1")
