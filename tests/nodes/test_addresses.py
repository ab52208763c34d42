"""Addresses of this node's loopback for the VMs of peers: two VMs on two nodes, tunnels behind them, bounds."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from tests.agent.nodes import spec
from tests.agent.test_addresses import page, refuses
from tests.nodes.test_in_memory import call, open_fleet
from twinshare.agent.node import Node
from twinshare.agent.reach import addresses
from twinshare.agent.reach.addresses import MAX_PORTS, ports_of
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.vm import Vm


async def running(node: Node, name: str, peer: str | None = None) -> Vm:
    with trio.fail_after(60):
        while (vm := await call(node, "get_vm", peer, vm=name)).ip is None:
            await trio.sleep(0.01)
    assert isinstance(vm, Vm)
    return vm


async def test_vms_of_two_nodes_have_addresses_on_both(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (one, two)):
        for node, created in ((one, "first"), (two, "second")):
            await call(node, "create_vm", spec=spec(created, start=True, labels={"ports": "80"}))
        seen = [
            await running(one, "first"), await running(one, "second", "node-1"),
            await running(two, "first", "node-0"), await running(two, "second"),
        ]  # fmt: skip
        assert len({vm.ip for vm in seen}) == 4, "each node has an address of its own for each VM"
        for vm, name in zip(seen, (b"first", b"second") * 2, strict=True):
            assert vm.guest_ip == "10.0.2.15"
            assert name in await page(str(vm.ip))
        found = await call(one, "vm_ip", "node-1", vm="second")
        assert (found.ip, found.guest_ip) == (seen[1].ip, "10.0.2.15")
        assert [vm.ip for vm in await call(one, "list_vms", "node-1")] == [seen[1].ip]
        fleet = {vm.name: vm.ip for vm in (await one.fleet_vms(LOCAL_ADMIN)).vms}
        assert fleet == {"first": seen[0].ip, "second": seen[1].ip}


async def test_an_address_goes_with_the_peers_vm(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (far, near)):
        await call(far, "create_vm", spec=spec("far", start=True, labels={"ports": "80"}))
        vm = await running(near, "far", "node-0")
        await call(far, "stop_vm", vm="far", force=True)
        off = await call(near, "get_vm", "node-0", vm="far")
        assert (off.ip, off.ports) == (None, [])
        with trio.fail_after(60):
            while not await refuses(str(vm.ip), 80):
                await trio.sleep(0.01)
        await call(far, "start_vm", vm="far")
        assert (await running(near, "far", "node-0")).ip == vm.ip
        await call(far, "delete_vm", vm="far", force=True)
        assert await call(near, "list_vms", "node-0") == []
        with trio.fail_after(60):
            while not await refuses(str(vm.ip), 80):
                await trio.sleep(0.01)
        assert near.peer_addresses._loopback.address(f"{far.peer_id}/{vm.id}") is None


async def test_a_peer_cannot_have_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MAX_VMS", 3)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (far, near)):
        await call(far, "create_vm", spec=spec("far", start=True))
        vm = await running(near, "far", "node-0")
        rows = [msgspec.structs.replace(vm, id=f"{number}", ports=list(range(20000, 20100))) for number in range(9)]
        shown = [await near.peer_addresses.vm(far.peer_id, row) for row in rows]
        assert [row.ip is not None for row in shown] == [True, True] + [False] * 7
        assert all(len(row.ports) <= MAX_PORTS for row in shown)
        assert near.peer_addresses._loopback.listeners <= 3 * MAX_PORTS


def test_ports_that_a_peer_invents_are_left_out() -> None:
    vm = msgspec.convert(
        {"id": "i", "name": "n", "status": "running", "cpu_cores": 1, "memory": 64, "disk_size": 1, "hypervisor": "tcg",
         "network": "default", "vnc_port": None, "created_at": "2026-01-01T00:00:00Z", "ports": [-1, 0, 70000, 80]},
        Vm,
    )  # fmt: skip
    assert ports_of(vm) == [22, 80]
