"""Screens of VMs, here and of peers: RFB both ways, for owners and admins, until the VM stops."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec
from tests.agent.test_consoles import end_of
from tests.nodes.test_consoles import hypervisor_of
from tests.nodes.test_in_memory import call
from tests.nodes.test_tunnels import pair
from tests.stopwatch import within
from twinshare.agent.node import Node
from twinshare.agent.reach.consoles import Console
from twinshare.agent.reach.screens import MAX_VIEWERS
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, Overloaded, PeerUnreachable, WrongState

GREETING = b"RFB 003.008\n"


async def said(screen: Console, count: int) -> bytes:
    heard = b""
    with trio.fail_after(60):
        while len(heard) < count:
            heard += await screen.receive()
    return heard


async def shake_hands(screen: Console) -> bytes:
    """Return the server's last part of the handshake: size, format and name."""
    assert await said(screen, len(GREETING)) == GREETING
    await screen.send(GREETING)
    assert await said(screen, 2) == b"\x01\x01"
    await screen.send(b"\x01")
    assert await said(screen, 4) == bytes(4)
    await screen.send(b"\x01")
    return await said(screen, 24 + len("memory"))


async def nobody_looks(node: Node) -> None:
    with trio.fail_after(60):
        while node.screens._viewers:
            await trio.sleep(0.01)


async def test_a_far_screen_is_a_screen(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        [vm] = await call(far, "list_vms")
        async with near.screen(LOCAL_ADMIN, "far", "node-0") as one, far.screen(LOCAL_ADMIN, vm.id) as two:
            for screen in (one, two):
                assert (await shake_hands(screen)).endswith(b"memory")
                # Everything, in raw encoding: more than one frame between peers.
                await screen.send(b"\x03\x00" + bytes(4) + b"\x00\x40\x00\x30")
                assert len(await said(screen, 16 + 4 * 64 * 48)) == 16 + 4 * 64 * 48
            hypervisor_of(far).power_off(vm.id)
            for screen in (one, two):
                ended = await end_of(screen)
                assert (type(ended), ended.message) == (WrongState, "VM 'far' has stopped")
        await nobody_looks(far)


async def test_who_may(tmp_path: Path) -> None:
    reader = Caller(principal="token:reader", role=Role.VIEWER)
    worker = Caller(principal="token:worker", role=Role.OPERATOR)
    async with pair(tmp_path, Role.OPERATOR) as (near, far, _):
        await call(near, "create_vm", "node-0", worker, spec=spec("mine", start=True))
        for caller, vm, words in ((reader, "mine", "operator"), (worker, "far", "belongs to local")):
            with pytest.raises(Forbidden, match=words):
                async with near.screen(caller, vm, "node-0"):
                    pass
        async with near.screen(worker, "mine", "node-0") as screen:
            assert await said(screen, len(GREETING)) == GREETING
        await call(far, "stop_vm", vm="far", force=True)
        with pytest.raises(WrongState, match="start it first"):
            async with far.screen(LOCAL_ADMIN, "far"):
                pass


async def test_so_many_and_no_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as (_, far, _), AsyncExitStack() as viewers:
        for _ in range(MAX_VIEWERS):
            await viewers.enter_async_context(far.screen(LOCAL_ADMIN, "far"))
        with pytest.raises(Overloaded):
            await viewers.enter_async_context(far.screen(LOCAL_ADMIN, "far"))
        await viewers.aclose()
        async with far.screen(LOCAL_ADMIN, "far") as screen:
            assert await said(screen, len(GREETING)) == GREETING


async def test_a_peer_that_goes_away_ends_its_screens(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, network), near.screen(LOCAL_ADMIN, "far", "node-0") as screen:
        assert await said(screen, len(GREETING)) == GREETING
        network.partition([near.peer_id], [far.peer_id])
        with within(10):
            assert isinstance(await end_of(screen), PeerUnreachable)
        await nobody_looks(far)
