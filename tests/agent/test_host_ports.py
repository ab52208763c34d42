"""One port of a node leads to one guest: whoever asks for it, and also while nothing listens on it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from tests.agent.test_create_forwards import forward
from tests.nodes.test_in_memory import call
from tests.nodes.test_tunnels import pair
from tests.ports import free_port
from twinshare.agent.relays import listen
from twinshare.agent.vm import host_ports, watch
from twinshare.protocols.errors import HypervisorDown, PortTaken


async def test_a_port_that_is_being_written_down_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No VM runs, so that nothing listens on the port."""
    port, writing, go_on = free_port(), trio.Event(), trio.Event()
    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        for name in ("one", "two"):
            await vms.create_vm(spec(name))
        write = hypervisor.set_metadata

        async def first_wait(id: str, metadata: str) -> None:
            if not writing.is_set():
                writing.set()
                await go_on.wait()
            await write(id, metadata)

        monkeypatch.setattr(hypervisor, "set_metadata", first_wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vms.add_forward, "one", forward(port))
            await writing.wait()
            with pytest.raises(PortTaken, match="is forwarded to VM 'one'"):
                await vms.add_forward("two", forward(port))
            with pytest.raises(PortTaken, match="is forwarded to VM 'one'"):
                await vms.create_vm(spec("three", forwards=[forward(port)]))
            go_on.set()
        assert [one.host_port for one in await vms.list_forwards("one")] == [port]
        with pytest.raises(PortTaken):
            await vms.add_forward("two", forward(port))


def first_give(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The kernel gives this port to the first who asks for any."""
    given: list[int] = []

    async def listening(bind: str, asked: int) -> list[trio.SocketListener]:
        if asked or given:
            return await listen(bind, asked)
        given.append(port)
        return await listen(bind, port)

    monkeypatch.setattr(host_ports, "listen", listening)


async def test_the_port_of_a_stopped_vm_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        for name in ("one", "two"):
            await vms.create_vm(spec(name))
        port = (await vms.add_forward("one", forward())).host_port
        first_give(monkeypatch, port)
        assert (await vms.add_forward("two", forward())).host_port != port
        first_give(monkeypatch, port)
        await vms.create_vm(spec("four", forwards=[forward()]))
        [made] = await vms.list_forwards("four")
        assert made.host_port != port


async def test_a_start_says_which_forward_is_closed_and_it_opens_when_the_port_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.05)
    async with open_test_node(tmp_path) as (_, vms, _):
        made = await vms.create_vm(spec())
        [taken] = await listen("127.0.0.1", 0)
        port = taken.socket.getsockname()[1]
        await taken.aclose()
        await vms.add_forward("one", forward(port))
        [taken] = await listen("127.0.0.1", port)
        async with taken:
            started = await vms.start_vm("one")
            [warning] = [warning for warning in started.warnings if warning not in made.warnings]
            assert f"a forward is closed and tried again: port {port} on 127.0.0.1 is taken by another" in warning
        with trio.fail_after(30):
            while (await vms.get_vm("one")).warnings != made.warnings:
                await trio.sleep(0.01)
        assert [one.active for one in await vms.list_forwards("one")] == [True]


async def test_a_port_that_cannot_be_kept_does_not_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(id: str, metadata: str) -> None:
        raise HypervisorDown("away")

    async with open_test_node(tmp_path) as (_, vms, hypervisor):
        await vms.create_vm(spec(start=True))
        port = free_port()
        monkeypatch.setattr(hypervisor, "set_metadata", refuse)
        with pytest.raises(HypervisorDown):
            await vms.add_forward("one", forward(port))
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_tunnel_and_a_stopped_vm_do_not_share_a_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pair(tmp_path) as (near, _, _):
        await call(near, "create_vm", spec=spec("mine"))
        mine = await call(near, "add_forward", vm="mine", forward=forward())
        with pytest.raises(PortTaken, match="is forwarded to VM 'mine'"):
            await call(near, "add_forward", "node-0", vm="far", forward=forward(mine.host_port))
        first_give(monkeypatch, mine.host_port)
        tunnel = await call(near, "add_forward", "node-0", vm="far", forward=forward())
        assert tunnel.host_port != mine.host_port
        with pytest.raises(PortTaken, match="is forwarded to VM 'far'"):
            await call(near, "add_forward", vm="mine", forward=forward(tunnel.host_port))
        await call(near, "remove_forward", "node-0", vm="far", host_port=tunnel.host_port)
        assert (await call(near, "add_forward", vm="mine", forward=forward(tunnel.host_port))).host_port


async def test_of_tunnels_that_want_a_port_at_once_one_gets_it(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        for name in ("far2", "far3"):
            await call(far, "create_vm", spec=spec(name, start=True))
        port, got = free_port(), []

        async def add(name: str) -> None:
            with suppress(PortTaken):
                await call(near, "add_forward", "node-0", vm=name, forward=forward(port))
                got.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("far", "far2", "far3"):
                nursery.start_soon(add, name)
        assert len(got) == 1
        assert [tunnel.vm_name for tunnel in near.tunnels.kept.values()] == got
