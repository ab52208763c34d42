"""Addresses of VMs on this node's loopback: one each, kept, open while the VM runs, for this node's user alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.loopback import SCHEMA, LoopbackAddresses, open_loopback_addresses
from twinshare.agent.relays import Dial, Relays, open_relays
from twinshare.agent.sockets import FarSocket
from twinshare.agent.state import State, open_state
from twinshare.agent.vm import inventory
from twinshare.agent.vm.addresses import MAX_PORTS, first_address, labelled_ports
from twinshare.protocols.services import VmService
from twinshare.protocols.vm import ForwardSpec, Vm, VmChange

from .nodes import open_test_node, spec


async def admit(stream: trio.SocketStream) -> bool:
    return True


async def nobody() -> trio.SocketStream:
    raise ConnectionRefusedError("nobody")


def dials(*ports: int) -> Mapping[int, Dial]:
    return dict.fromkeys(ports, nobody)


async def opened(state: State, relays: Relays, node: str = "here") -> LoopbackAddresses:
    return await open_loopback_addresses(state, relays, admit, node)


async def page(address: str, port: int = 80) -> bytes:
    with trio.fail_after(60):
        async with await trio.open_tcp_stream(address, port) as stream:
            try:
                await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join([part async for part in stream])
            except trio.BrokenResourceError:
                return b""


async def refuses(address: str, port: int) -> bool:
    try:
        async with await trio.open_tcp_stream(address, port):
            return False
    except OSError:
        return True


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def running(vms: VmService, name: str) -> Vm:
    """A running VM whose address is known."""
    with trio.fail_after(60):
        while (vm := await vms.get_vm(name)).ip is None:
            await trio.sleep(0.01)
    return vm


async def test_an_address_is_kept_and_no_two_vms_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        """A hash that gives every VM the same first address."""

        def __init__(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr("twinshare.agent.loopback.hashlib.sha256", Same)
    async with open_relays() as relays, open_state(tmp_path / "db", [SCHEMA]) as state:
        first = await opened(state, relays)
        got = [await first.open(f"vm-{number}", {}) for number in range(300)]
        assert len(set(got)) == 300
        assert all(ipaddress.ip_address(one).is_loopback for one in got)
        assert not any(one.endswith((".0", ".255")) for one in got)
        again = await opened(state, relays)
        assert [await again.open(f"vm-{number}", {}) for number in range(300)] == got
        await again.forget("vm-7")
        assert await again.open("another", {}) == got[7]


async def test_an_address_on_which_others_listen_is_passed_over(tmp_path: Path) -> None:
    """Two nodes of one machine, which have never heard of each other."""
    async with open_relays() as relays, open_relays() as others, open_state(tmp_path / "db", [SCHEMA]) as state:
        ours, theirs = await opened(state, relays), LoopbackAddresses(state, others, admit, "here", {})
        one = await ours.open("vm", dials(18080))
        other = await theirs.open("vm", dials(18080))
        assert one != other
        assert theirs.ports("vm") == [18080]


async def test_ports_are_bounded_and_go_with_the_vm(tmp_path: Path) -> None:
    async with open_relays() as relays, open_state(tmp_path / "db", [SCHEMA]) as state:
        addresses = await opened(state, relays)
        before = open_files()
        await addresses.open("a", dials(*range(20000, 20010)))
        await addresses.open("b", dials(*range(20000, 20010)), limit=15)
        assert (len(addresses.ports("a")), len(addresses.ports("b")), addresses.listeners) == (10, 5, 15)
        kept = await addresses.open("a", dials(20003, 20011))
        assert addresses.ports("a") == [20003, 20011]
        assert await refuses(kept, 20001)
        for vm in ("a", "b"):
            addresses.close(vm)
        with trio.fail_after(60):
            while open_files() > before:
                await trio.sleep(0.01)
        assert addresses.address("a") == kept


async def test_a_vm_answers_at_its_address_while_it_runs(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        stopped = await vms.create_vm(spec(labels={"ports": "80, 8080"}))
        assert (stopped.ip, stopped.ports) == (None, [])
        await vms.start_vm("one")
        vm = await running(vms, "one")
        assert vm.guest_ip == "10.0.2.15"
        assert vm.ip is not None
        assert vm.ip.startswith("127.")
        assert set(vm.ports) >= {80, 8080}
        assert b"one" in await page(vm.ip)
        found = await vms.vm_ip("one")
        assert (found.ip, found.guest_ip, found.addresses) == (vm.ip, "10.0.2.15", ["10.0.2.15"])
        await vms.create_vm(spec("two", labels={"ports": "80"}, start=True))
        other = await running(vms, "two")
        assert other.ip != vm.ip
        assert other.ip is not None
        assert b"two" in await page(other.ip)
        ended = await vms.stop_vm("one", force=True)
        assert (ended.ip, ended.guest_ip, ended.ports) == (None, None, [])
        with trio.fail_after(60):
            while not await refuses(vm.ip, 80):
                await trio.sleep(0.01)
        await vms.start_vm("one")
        assert (await running(vms, "one")).ip == vm.ip
        deleted = await vms.delete_vm("one", force=True)
        assert deleted.ip is None
        with trio.fail_after(60):
            while node.vms.addresses._loopback.address(vm.id) is not None:
                await trio.sleep(0.01)
        assert isinstance(hypervisor, MemoryHypervisor)


async def test_ports_of_forwards_and_those_that_the_guest_uses(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec(start=True))

        async def greet(stream: trio.SocketStream) -> None:
            await stream.send_all(b"hello")

        for port in (9000, 9001):
            hypervisor.serve_in_guest(made.id, port, greet)
        forward = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=9000))
        vm = await running(vms, "one")
        assert vm.ip is not None
        assert 9000 in vm.ports
        assert await page(vm.ip, 9000) == b"hello"
        await node.vms.addresses.listens(made.id, [9001, *range(10000, 10100)])
        assert len((await vms.get_vm("one")).ports) <= MAX_PORTS
        assert await page(vm.ip, 9001) == b"hello"
        await vms.remove_forward("one", forward.host_port)
        assert 9000 not in (await vms.get_vm("one")).ports
        await node.vms.addresses.listens("no such VM", [80])


async def test_a_guest_that_cannot_be_asked_gets_its_address_when_it_had_time_to_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_test_node(tmp_path, uri="fake://?boots_in=never") as (node, vms, _):
        made = await vms.create_vm(spec(start=True))
        assert (await vms.get_vm("one")).ip is None
        monkeypatch.setattr(inventory, "TIME_TO_BOOT", 0)
        assert (await vms.get_vm("one")).ip is not None
        monkeypatch.undo()
        assert (await vms.get_vm("one")).ip is None
        await node.vms.addresses.listens(made.id, [])
        assert (await vms.get_vm("one")).ip is not None


async def test_other_users_are_let_go_unheard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(labels={"ports": "80"}, start=True))
        vm = await running(vms, "one")
        assert vm.ip is not None
        assert b"one" in await page(vm.ip)
        monkeypatch.setattr("twinshare.agent.backends.far_socket", lambda client, server: FarSocket(uid=12345, inode=1))
        assert await page(vm.ip) == b""


async def test_a_label_is_changed_and_its_ports_with_it(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        await running(vms, "one")
        await vms.update_vm("one", VmChange(labels={"ports": "80"}))
        with trio.fail_after(60):
            while 80 not in (await vms.get_vm("one")).ports:
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("label", "ports"), [("80,443", [80, 443]), ("", []), ("0 65536 99999999 x ²", []), (" 22 ", [22])]
)
def test_what_a_label_says(label: str, ports: list[int]) -> None:
    assert labelled_ports({"ports": label}) == ports


async def test_a_port_that_the_guest_reports_is_open_at_its_address(tmp_path: Path) -> None:
    """The guest is this machine: whatever listens here, the guest program reports."""
    async with open_test_node(tmp_path, uri="fake://?boots_in=never&guest_program=1") as (_, vms, _):
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        async with listener:
            await vms.create_vm(spec(start=True))
            with trio.fail_after(20):
                while (vm := await vms.get_vm("one")).ip is None or not vm.ports:
                    await trio.sleep(0.02)
        assert vm.ip is not None
        assert vm.ip.startswith("127.")
        assert port > 0


def test_the_first_address_of_a_guest_is_one() -> None:
    assert first_address(["x", "fe80::1%eth0", "10.1.2.3", "fd00::1"]) in {"fe80::1%eth0", "10.1.2.3"}
    assert first_address(["", "300.1.1.1"]) is None
