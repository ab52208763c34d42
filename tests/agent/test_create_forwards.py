"""Forwards in a create: all of them or no VM."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec, vms_of
from tests.ports import free_port
from twinshare.agent.relays import listen
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import Forbidden, PortTaken, Unsupported
from twinshare.protocols.vm import ForwardSpec

PEER = Caller(principal="peer", role=Role.OPERATOR, from_peer=True)


def forward(host_port: int = 0, guest_port: int = 80, **more: str) -> ForwardSpec:
    return ForwardSpec(host_port=host_port, guest_port=guest_port, **more)


@pytest.mark.parametrize("start", [False, True])
async def test_a_vm_is_created_with_all_its_forwards(tmp_path: Path, start: bool) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        port = free_port()
        await vms.create_vm(spec(forwards=[forward(port), forward(), forward(guest_port=22)], start=start))
        made = await vms.list_forwards("one")
        assert [(one.guest_port, one.active) for one in made] == [(80, start), (80, start), (22, start)]
        assert made[0].host_port == port
        assert 0 not in (chosen := {one.host_port for one in made})
        assert len(chosen) == 3
        if start:
            with trio.fail_after(20):
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()


@pytest.mark.parametrize("start", [False, True])
async def test_a_taken_port_refuses_the_create_before_anything_is_made(tmp_path: Path, start: bool) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        [taken] = await listen("127.0.0.1", 0)
        port, free = taken.socket.getsockname()[1], free_port()
        async with taken:
            with pytest.raises(PortTaken, match=f"port {port} .* is taken by another program"):
                await vms.create_vm(spec(forwards=[forward(free), forward(port)], start=start))
        assert await vms.list_vms() == []
        assert not node.vms.files.has_vms()
        await vms.create_vm(spec(forwards=[forward(free), forward(port)], start=start))
        with pytest.raises(PortTaken, match=f"port {free} is forwarded to VM 'one'") as refused:
            await vms.create_vm(spec("two", forwards=[forward(), forward(free)]))
        assert refused.value.details["vm"] == "one"
        assert [vm.name for vm in await vms.list_vms()] == ["one"]


async def test_a_port_that_is_lost_before_the_start_takes_the_vm_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        port, start, taken = free_port(), hypervisor.start, []

        async def lose_the_port(id: str) -> None:
            taken.extend(await listen("127.0.0.1", port))
            await start(id)

        monkeypatch.setattr(hypervisor, "start", lose_the_port)
        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 cannot be opened"):
            await vms.create_vm(spec(forwards=[forward(port)], start=True))
        for listener in taken:
            await listener.aclose()
        assert await vms.list_vms() == []
        assert not node.vms.files.has_vms()


async def test_of_two_at_once_one_gets_the_port(tmp_path: Path) -> None:
    made: list[str] = []
    async with open_test_node(tmp_path) as (_, vms, _):
        port = free_port()

        async def create(name: str) -> None:
            with suppress(PortTaken):
                made.append((await vms.create_vm(spec(name, forwards=[forward(port)]))).name)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for name in ("one", "two", "three"):
                    nursery.start_soon(create, name)
        assert [vm.name for vm in await vms.list_vms()] == made
        assert len(made) == 1


async def test_what_add_forward_refuses_a_create_refuses_too(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        with pytest.raises(Forbidden, match="needs the role admin"):
            await vms_of(node, PEER).create_vm(spec(forwards=[forward(bind="0.0.0.0")]))  # noqa: S104 - refused
        with pytest.raises(Unsupported, match="only tcp"):
            await vms.create_vm(spec(forwards=[forward(protocol="udp")]))
        assert await vms.list_vms() == []


def test_one_port_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="must not name one host_port twice"):
        spec(forwards=[forward(8080), forward(8080, 81)])
