"""Forwards of VMs: which are refused, whose port is taken, and what is open after `Forwards.open`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec, vms_of
from twinshare.agent.vm.forwards import check_bind
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, PortTaken
from twinshare.protocols.vm import ForwardSpec

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - what a peer may not bind
PEER = Caller(principal="peer", role=Role.OPERATOR, from_peer=True)
PEER_ADMIN = Caller(principal="peer", role=Role.ADMIN, from_peer=True)
LOCAL_OPERATOR = Caller(principal="token:ci", role=Role.OPERATOR)


@pytest.mark.parametrize("bind", [ANY_ADDRESS, "::", "192.0.2.1", "2001:db8::1"])
def test_an_operator_binds_no_address_of_the_network(bind: str) -> None:
    wanted = ForwardSpec(host_port=0, guest_port=80, bind=bind)
    for caller in (PEER, LOCAL_OPERATOR):
        with pytest.raises(Forbidden, match=f"bind {bind} needs the role admin") as refused:
            check_bind(caller, wanted)
        assert refused.value.details["role_needed"] == "admin"
    for caller in (PEER_ADMIN, LOCAL_ADMIN):
        check_bind(caller, wanted)


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_is_open_to_the_operator_of_a_peer(bind: str) -> None:
    for caller in (PEER, PEER_ADMIN, LOCAL_OPERATOR, LOCAL_ADMIN):
        check_bind(caller, ForwardSpec(host_port=0, guest_port=80, bind=bind))


async def test_a_forward_to_the_network_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        peer = vms_of(node, PEER)
        await peer.create_vm(spec())
        with pytest.raises(Forbidden, match="needs the role admin"):
            await peer.add_forward("one", ForwardSpec(host_port=0, guest_port=80, bind=ANY_ADDRESS))
        assert await peer.list_forwards("one") == []
        made = await peer.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
        assert await peer.list_forwards("one") == [made]


async def test_the_same_forward_again_is_one_and_any_other_on_its_port_is_refused(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec())
        await vms.create_vm(spec("two"))
        made = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
        same = ForwardSpec(host_port=made.host_port, guest_port=80)
        assert await vms.add_forward("one", same) == made
        assert await vms.list_forwards("one") == [made]
        for vm, guest_port in (("one", 81), ("two", 80), ("two", 81)):
            with pytest.raises(PortTaken, match="is forwarded to VM 'one'"):
                await vms.add_forward(vm, ForwardSpec(host_port=made.host_port, guest_port=guest_port))
        assert await vms.list_forwards("two") == []


async def test_a_chosen_port_of_a_running_vm_is_opened_and_kept(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        vm = await vms.create_vm(spec())
        port = (await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))).host_port
        await vms.remove_forward("one", port)
        await vms.start_vm("one")
        wanted = ForwardSpec(host_port=port, guest_port=80)
        forwards, record = node.vms.forwards, await node.vms.record(vm.id)
        await forwards.open(record, wanted)
        assert forwards.view(record, wanted).active
        made = await vms.add_forward("one", wanted)
        assert (made.host_port, made.active) == (port, True)
        assert await vms.list_forwards("one") == [made]
        with trio.fail_after(60):
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()


async def test_a_port_that_is_only_tried_is_not_left_open(tmp_path: Path) -> None:
    """That of a stopped VM, and any free one, which is opened when it has been written down."""
    async with open_test_node(tmp_path) as (node, vms, _):
        vm = await vms.create_vm(spec())
        forwards = node.vms.forwards
        [wanted] = await forwards.ports.choose([ForwardSpec(host_port=0, guest_port=80)])
        record = await node.vms.record(vm.id)
        await forwards.open(record, wanted)
        assert not forwards.view(record, wanted).active
        with trio.fail_after(60), pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", wanted.host_port)


async def test_a_port_that_stays_taken_is_a_line_of_the_log_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        vm = await vms.create_vm(spec())
        made = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
        with socket.create_server(("127.0.0.1", made.host_port)):
            await vms.start_vm("one")
            record = await node.vms.record(vm.id)
            for _ in range(3):
                await node.vms.forwards.reconcile(record)
            assert not node.vms.forwards.view(record, record.metadata.forwards[0]).active
        assert capsys.readouterr().err.count("ports cannot be opened") == 1
        await node.vms.forwards.reconcile(record)
        assert node.vms.forwards.view(record, record.metadata.forwards[0]).active
        assert node.vms.inventory.unopened == {}


async def test_a_forward_of_a_running_vm_opens_its_address_too_and_is_answered_when_it_goes(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        made = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=18_080))
        assert 18_080 in (await vms.get_vm("one")).ports
        gone = await vms.remove_forward("one", made.host_port)
        assert (gone.host_port, gone.guest_port, gone.active) == (made.host_port, 18_080, False)
        assert 18_080 not in (await vms.get_vm("one")).ports
