"""Serial consoles of a node's VMs: one connection to the guest, many clients, and what ends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec, vms_of
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.agent.reach import consoles
from twinshare.agent.reach.consoles import BUFFER, MAX_CLIENTS, Console
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import (
    DeadlineExceeded,
    Forbidden,
    HypervisorDown,
    Overloaded,
    TwinshareError,
    Unavailable,
    VmNotFound,
    WrongState,
)
from twinshare.protocols.services import VmService

OPERATOR = Caller(principal="token:ci", role=Role.OPERATOR)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Node, VmService, MemoryHypervisor, str]]:
    """A node with the running VM `one`, and its id."""
    async with open_test_node(folder) as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))
        yield node, vms, hypervisor, made.id


async def hear(console: Console, count: int) -> bytes:
    heard = b""
    with within(10):
        while len(heard) < count:
            heard += await console.receive()
    return heard


async def end_of(console: Console) -> TwinshareError:
    """What ended it; what it said until then is thrown away."""
    with trio.fail_after(60):
        try:
            while True:
                await console.receive()
        except TwinshareError as error:
            return error


async def test_all_who_listen_hear_all_and_may_type(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, vms, _, id), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(node.console(LOCAL_ADMIN, vm)) for vm in ("one", id, "one")]
        await clients[0].send(b"first ")
        await clients[2].send(b"third\r")
        for console in clients:
            heard = await hear(console, 13)
            assert sorted(heard.split()) == [b"first", b"third"]
        assert "third" in (await vms.vm_log("one")).text


async def test_a_log_that_was_shortened_is_read_from_its_beginning(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, vms, _, id):
        log = node.vms.files.directory(id) / "tty.log"
        log.write_bytes(b"x" * 100)
        assert (await vms.vm_log("one")).next_offset == 100
        log.write_bytes(b"anew")
        part = await vms.vm_log("one", offset=100)
        assert (part.text, part.offset, part.next_offset) == ("anew", 0, 4)
        assert (await vms.vm_log("one", offset=4)).text == ""


async def test_a_character_of_a_log_is_not_cut(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, vms, _, id):
        log = node.vms.files.directory(id) / "tty.log"
        log.write_bytes("ä€".encode()[:-1])
        part = await vms.vm_log("one", offset=0)
        assert (part.text, part.next_offset) == ("ä", 2)
        log.write_bytes("ä€".encode())
        assert (await vms.vm_log("one", offset=2)).text == "€"
        part = await vms.vm_log("one", offset=2, limit=1)
        assert (part.text, part.next_offset) == ("\N{REPLACEMENT CHARACTER}", 3)


async def test_the_console_comes_and_goes_with_its_clients(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, hypervisor, id):
        open_now = 0

        async def count(stream: trio.SocketStream) -> None:
            nonlocal open_now
            open_now += 1
            try:
                async for said in stream:
                    await stream.send_all(b"%d" % open_now + said)
            finally:
                open_now -= 1

        hypervisor.serve_console(id, count)
        for _ in range(20):
            async with node.console(LOCAL_ADMIN, "one") as one, node.console(LOCAL_ADMIN, "one") as two:
                await one.send(b"x")
                assert [await hear(one, 2), await hear(two, 2)] == [b"1x", b"1x"]
        with trio.fail_after(60):
            while open_now:
                await trio.sleep(0.01)


async def test_a_listener_who_leaves_while_it_is_dialled_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, hypervisor, _id):
        hypervisor.behaviour.delay = 0.05
        with trio.move_on_after(0.01) as scope:
            async with node.console(LOCAL_ADMIN, "one"):
                raise AssertionError("it was open already")
        assert scope.cancelled_caught
        async with node.console(LOCAL_ADMIN, "one") as console:
            await console.send(b"x")
            assert await hear(console, 1) == b"x"


async def test_who_reads_too_slowly_is_let_go_alone(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, hypervisor, id):
        said = bytes(range(256)) * (2 * BUFFER // 256)

        async def talk(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(said)
            await trio.sleep_forever()

        hypervisor.serve_console(id, talk)
        async with node.console(LOCAL_ADMIN, "one") as slow, node.console(LOCAL_ADMIN, "one") as quick:
            await quick.send(b"go")
            assert await hear(quick, len(said)) == said
            ended = await end_of(slow)
            assert isinstance(ended, Overloaded)
            assert "too slowly" in ended.message
            with pytest.raises(Overloaded):
                await slow.send(b"x")
            async with node.console(LOCAL_ADMIN, "one") as again:
                await again.send(b"x")


async def test_a_guest_that_does_not_read_holds_up_who_types_and_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, _, hypervisor, id):
        both = trio.Event()

        async def deaf(stream: trio.SocketStream) -> None:
            await both.wait()
            await stream.send_all(b"hello")
            await trio.sleep_forever()

        hypervisor.serve_console(id, deaf)
        async with node.console(LOCAL_ADMIN, "one") as one, node.console(LOCAL_ADMIN, "one") as two:
            both.set()
            assert [await hear(one, 5), await hear(two, 5)] == [b"hello", b"hello"]
            with trio.move_on_after(0.1) as scope:
                await one.send(bytes(8 << 20))
            assert scope.cancelled_caught
            hypervisor.power_off(id)
            assert isinstance(await end_of(two), WrongState)


@pytest.mark.parametrize("how", ["power_off", "crash", "destroy", "delete"])
async def test_the_end_of_the_vm_ends_it_with_a_sentence(how: str, tmp_path: Path) -> None:
    async with running(tmp_path) as (node, vms, hypervisor, id):
        async with node.console(LOCAL_ADMIN, "one") as one, node.console(LOCAL_ADMIN, "one") as two:
            if how == "destroy":
                await vms.stop_vm("one", force=True)
            elif how == "delete":
                await vms.delete_vm("one", force=True)
            else:
                getattr(hypervisor, how)(id)
            for console in (one, two):
                ended = await end_of(console)
                assert isinstance(ended, WrongState)
                assert ended.message == "VM 'one' has stopped"
                with pytest.raises(WrongState):
                    await console.send(b"x")
        if how in {"power_off", "destroy"}:
            await vms.start_vm("one")
            async with node.console(LOCAL_ADMIN, "one") as console:
                await console.send(b"again")
                assert await hear(console, 5) == b"again"


async def test_the_end_of_the_node_ends_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        async with running(tmp_path) as (node, _, _h, _id):
            console = await stack.enter_async_context(node.console(LOCAL_ADMIN, "one"))
        ended = await end_of(console)
        assert isinstance(ended, Unavailable)
        assert "stopping" in ended.message


async def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (node, vms, hypervisor, id):
        owned = await vms_of(node, OPERATOR).create_vm(spec("theirs", start=True))
        cases: list[tuple[Caller, str, type[TwinshareError], str]] = [
            (LOCAL_ADMIN, "nope", VmNotFound, "nope"),
            (OPERATOR, "one", Forbidden, "belongs to local"),
            (Caller(principal="local", role=Role.VIEWER), "one", Forbidden, "operator"),
            (Caller(principal="token:ci", role=Role.VIEWER), owned.id, Forbidden, "operator"),
        ]
        for caller, vm, kind, said in cases:
            with pytest.raises(kind, match=said):
                async with node.console(caller, vm):
                    pass
        async with node.console(OPERATOR, "theirs") as console, node.console(LOCAL_ADMIN, "theirs"):
            await console.send(b"x")
        async with AsyncExitStack() as stack:
            for _ in range(MAX_CLIENTS):
                await stack.enter_async_context(node.console(LOCAL_ADMIN, "one"))
            with pytest.raises(Overloaded, match="8 clients"):
                await stack.enter_async_context(node.console(LOCAL_ADMIN, "one"))
        await vms.pause_vm("one")
        async with node.console(LOCAL_ADMIN, "one"):
            pass
        await vms.resume_vm("one")
        hypervisor.hang(id)
        monkeypatch.setattr(consoles, "DIAL_TIMEOUT", 0.05)
        with pytest.raises(DeadlineExceeded):
            async with node.console(LOCAL_ADMIN, "one"):
                pass
        hypervisor.unhang(id)
        await vms.stop_vm("one", force=True)
        with pytest.raises(WrongState, match="start it first"):
            async with node.console(LOCAL_ADMIN, "one"):
                pass
        hypervisor.go_down()
        with pytest.raises(HypervisorDown):
            async with node.console(LOCAL_ADMIN, "theirs"):
                pass
