"""Consoles of peers' VMs: a stream to the peer, which decides who may listen and type."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec
from tests.agent.test_consoles import end_of, hear
from tests.nodes.test_in_memory import call, open_fleet
from tests.nodes.test_tunnels import pair
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.agent.reach import remote_console
from twinshare.agent.reach.consoles import Console
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.console import PROTOCOL, ConsoleFrame, ConsoleRequest
from twinshare.protocols.errors import (
    Forbidden,
    Overloaded,
    P2pStopped,
    PeerNotFound,
    PeerUnreachable,
    TwinshareError,
    VmNotFound,
    WrongState,
)
from twinshare.protocols.tunnel import HEAD, encode


def hypervisor_of(node: Node) -> MemoryHypervisor:
    hypervisor = node.vms.hypervisor
    assert isinstance(hypervisor, MemoryHypervisor)
    return hypervisor


async def nobody_listens(node: Node) -> None:
    with trio.fail_after(60):
        while node.consoles._connections:
            await trio.sleep(0.01)


async def test_a_far_console_is_a_console(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        [vm] = await call(far, "list_vms")
        async with (
            near.console(LOCAL_ADMIN, "far", "node-0") as one,
            near.console(LOCAL_ADMIN, vm.id, far.peer_id) as two,
            far.console(LOCAL_ADMIN, "far") as three,
        ):
            said = bytes(range(128)) * 80
            await one.send(said)
            expected = said.replace(b"\r", b"\r\n")
            for console in (one, two, three):
                assert await hear(console, len(expected)) == expected
            hypervisor_of(far).power_off(vm.id)
            for console in (one, two, three):
                ended = await end_of(console)
                assert (type(ended), ended.message) == (WrongState, "VM 'far' has stopped")
        await nobody_listens(far)


async def test_a_long_output_comes_whole_however_fast_it_is(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        [vm] = await call(far, "list_vms")
        said = random.Random(1).randbytes(4 << 20)

        async def talk(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(said)
            await trio.sleep_forever()

        hypervisor_of(far).serve_console(vm.id, talk)
        async with near.console(LOCAL_ADMIN, "far", "node-0") as one, far.console(LOCAL_ADMIN, "far") as two:
            await one.send(b"go")
            heard: dict[Console, bytes] = {}

            async def listen(console: Console) -> None:
                heard[console] = await hear(console, len(said))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, one)
                nursery.start_soon(listen, two)
            assert list(heard.values()) == [said, said]


async def test_who_may(tmp_path: Path) -> None:
    reader = Caller(principal="token:reader", role=Role.VIEWER)
    worker = Caller(principal="token:worker", role=Role.OPERATOR)

    async def refused(node: Node, caller: Caller, vm: str, kind: type[TwinshareError], said: str) -> None:
        with pytest.raises(kind, match=said):
            async with node.console(caller, vm, "node-0"):
                pass

    async with pair(tmp_path, Role.VIEWER) as (near, _, _):
        await refused(near, LOCAL_ADMIN, "far", Forbidden, "operator")
    async with pair(tmp_path / "second", Role.OPERATOR) as (near, far, _):
        await refused(near, LOCAL_ADMIN, "far", Forbidden, "belongs to local")
        await call(near, "create_vm", "node-0", worker, spec=spec("mine", start=True))
        await call(near, "create_vm", "node-0", spec=spec("users", start=True))
        await refused(near, reader, "mine", Forbidden, "operator")
        await refused(near, worker, "users", Forbidden, "belongs to")
        async with near.console(worker, "mine", "node-0") as console:
            await console.send(b"x")
            assert await hear(console, 1) == b"x"
        async with far.console(LOCAL_ADMIN, "mine"):
            pass
    async with pair(tmp_path / "third", Role.ADMIN) as (near, _, _):
        await refused(near, worker, "far", Forbidden, "belongs to local")
        async with near.console(LOCAL_ADMIN, "far", "node-0"):
            pass


async def test_what_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        for vm, peer, kind in (("nope", "node-0", VmNotFound), ("far", "nobody", PeerNotFound)):
            with pytest.raises(kind):
                async with near.console(LOCAL_ADMIN, vm, peer):
                    pass
        await call(far, "stop_vm", vm="far", force=True)
        with pytest.raises(WrongState, match="start it first"):
            async with near.console(LOCAL_ADMIN, "far", "node-0"):
                pass
        await call(near, "stop_p2p")
        with pytest.raises(P2pStopped):
            async with near.console(LOCAL_ADMIN, "far", "node-0"):
                pass


async def test_a_peer_that_goes_away_ends_its_consoles_at_both_ends(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, network), near.console(LOCAL_ADMIN, "far", "node-0") as console:
        await console.send(b"x")
        assert await hear(console, 1) == b"x"
        network.partition([near.peer_id], [far.peer_id])
        with within(10):
            ended = await end_of(console)
        assert isinstance(ended, PeerUnreachable)
        await nobody_listens(far)


async def test_one_who_is_put_out_of_the_fleet_listens_no_longer(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (far, near)):
        await call(far, "create_vm", spec=spec("far", start=True))
        async with near.console(LOCAL_ADMIN, "far", "node-0") as console:
            await far.mesh.revoke(near.peer_id)
            assert isinstance(await end_of(console), PeerUnreachable)
            await nobody_listens(far)


async def test_a_slow_peer_is_let_go_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_console, "WRITE_TIMEOUT", 0.3)
    async with pair(tmp_path) as (near, far, _):
        [vm] = await call(far, "list_vms")
        rest = trio.Event()

        async def talk(stream: trio.SocketStream) -> None:
            while not rest.is_set():
                await stream.send_all(bytes(4096))
                await trio.lowlevel.checkpoint()
            await trio.sleep_forever()

        hypervisor_of(far).serve_console(vm.id, talk)
        async with near.console(LOCAL_ADMIN, "far", "node-0") as slow, far.console(LOCAL_ADMIN, "far") as quick:
            await hear(quick, 1 << 20)
            with trio.fail_after(60):
                while len(far.consoles._connections[vm.id].clients) > 1:
                    await quick.receive()
            rest.set()
            # Its last frame waits behind what it has not read, and then it is too late.
            assert isinstance(await end_of(slow), Overloaded | PeerUnreachable)
        await nobody_listens(far)


async def test_the_last_output_reaches_one_who_is_still_typing(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        [vm] = await call(far, "list_vms")
        for _ in range(5):
            async with near.console(LOCAL_ADMIN, "far", "node-0") as console, trio.open_nursery() as nursery:

                async def type_on(console: Console = console) -> None:
                    with suppress(TwinshareError):
                        while True:
                            await console.send(bytes(10000))

                nursery.start_soon(type_on)
                await hear(console, 100000)
                hypervisor_of(far).power_off(vm.id)
                assert isinstance(await end_of(console), WrongState)
                nursery.cancel_scope.cancel()
            await nobody_listens(far)
            await call(far, "start_vm", vm="far")


async def test_a_peer_that_talks_nonsense_gets_nothing(tmp_path: Path) -> None:
    asked = encode(ConsoleRequest(vm="far", role=Role.ADMIN))
    async with pair(tmp_path) as (near, far, _):
        running = near.mesh.require_running()
        await running.sessions.session_to(far.peer_id)
        nonsense = (b"", b"\x00", HEAD.pack(65535), HEAD.pack(3) + b"abc", asked + HEAD.pack(1) + b"\xc1", asked)
        for said in nonsense:
            stream = await running.host.open_stream(far.peer_id, PROTOCOL)
            with trio.fail_after(20), suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                await stream.send_eof()
                while heard := await stream.receive_some(100):
                    assert heard == encode(ConsoleFrame())
            await stream.aclose()
        await nobody_listens(far)
        async with near.console(LOCAL_ADMIN, "far", "node-0") as console:
            await console.send(b"x")
            assert await hear(console, 1) == b"x"
