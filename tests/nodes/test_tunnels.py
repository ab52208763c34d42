"""Forwards to the VMs of peers: a port of this node, a tunnel for each connection, the guest behind the far node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import TABLE, call, eventually, join, keyed, open_fleet, open_node_on
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.agent.reach import tunnels
from twinshare.agent.relays import listen
from twinshare.agent.vm.record import Record
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import (
    Forbidden,
    ForwardNotFound,
    P2pStopped,
    PeerNotFound,
    PortTaken,
    VmNotFound,
)
from twinshare.protocols.tunnel import HEAD, PROTOCOL, TunnelRequest, encode
from twinshare.protocols.vm import Forward, ForwardSpec

FAR = "node-1"


async def forward(node: Node, guest_port: int = 80, host_port: int = 0, peer: str = FAR, **more: Any) -> Forward:
    asked = ForwardSpec(host_port=host_port, guest_port=guest_port)
    made: Forward = await call(node, "add_forward", peer, vm="far", forward=asked, **more)
    return made


async def get(port: int) -> bytes:
    """What the guest says to an HTTP request; nothing when the connection is ended."""
    with trio.fail_after(60):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            try:
                await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join([data async for data in stream])
            except trio.BrokenResourceError:
                return b""


async def echo_after_eof(stream: trio.SocketStream) -> None:
    said = b"".join([data async for data in stream])
    await stream.send_all(b"heard " + said)


@asynccontextmanager
async def pair(folder: Path, role: Role = Role.ADMIN) -> AsyncIterator[tuple[Node, Node, MemoryNetwork]]:
    """A node, and its peer with the running VM `far`, which belongs to the far node."""
    async with open_fleet(folder, role) as (network, (far, near)):
        await call(far, "create_vm", spec=spec("far", start=True))
        yield near, far, network


def listener(node: Node, port: int, serve: Any) -> None:
    hypervisor = node.vms.hypervisor
    assert isinstance(hypervisor, MemoryHypervisor)
    [record] = node.vms.inventory.records()
    hypervisor.serve_in_guest(record.domain.id, port, serve)


async def test_a_port_here_leads_to_a_guest_there(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        peer = "node-0"
        made = await forward(near, peer=peer)
        assert (made.guest_port, made.bind, made.active) == (80, "127.0.0.1", True)
        assert b"far" in await get(made.host_port)
        assert await call(near, "list_forwards", peer, vm="far") == [made]
        assert await call(far, "list_forwards", vm="far") == [], "the owner's own forwards are another thing"
        [vm] = await call(far, "list_vms")
        assert await call(near, "list_forwards", far.peer_id, vm=vm.id) == [made]
        gone = await call(near, "remove_forward", peer, vm="far", host_port=made.host_port)
        assert not gone.active
        with pytest.raises(OSError, match="connect"):
            await get(made.host_port)
        with pytest.raises(ForwardNotFound):
            await call(near, "remove_forward", peer, vm="far", host_port=made.host_port)


async def test_many_at_once_with_half_closes_and_much_to_say(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        listener(far, 7, echo_after_eof)
        port = (await forward(near, 7, peer="node-0")).host_port
        heard: list[int] = []

        async def talk(number: int) -> None:
            said = bytes([number]) * (1 << 18)
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(said)
                await stream.send_eof()
                answer = b"".join([data async for data in stream])
            assert answer == b"heard " + said
            heard.append(number)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(talk, number)
        assert len(heard) == 40


async def test_who_may(tmp_path: Path) -> None:
    async with pair(tmp_path, Role.VIEWER) as (near, _, _):
        with pytest.raises(Forbidden, match="operator"):
            await forward(near, peer="node-0")
        assert await call(near, "list_forwards", "node-0", vm="far") == []
    async with pair(tmp_path / "second", Role.OPERATOR) as (near, _, _):
        with pytest.raises(Forbidden, match="belongs to local"):
            await forward(near, peer="node-0")
        await call(near, "create_vm", "node-0", spec=spec("mine", start=True))
        asked = ForwardSpec(host_port=0, guest_port=80)
        viewer = Caller(principal="token:reader", role=Role.VIEWER)
        with pytest.raises(Forbidden, match="operator"):
            await call(near, "add_forward", "node-0", viewer, vm="mine", forward=asked)
        made = await call(near, "add_forward", "node-0", vm="mine", forward=asked)
        assert b"mine" in await get(made.host_port)
        other = Caller(principal="token:other", role=Role.OPERATOR)
        with pytest.raises(Forbidden, match="belongs to local"):
            await call(near, "remove_forward", "node-0", other, vm="mine", host_port=made.host_port)


async def test_an_operator_elsewhere_does_not_open_this_machine_to_the_network(tmp_path: Path) -> None:
    """`add_forward` called over a peer session, as no API of ours does: a port of the owner's machine."""
    for role, bind, refused in (
        (Role.OPERATOR, "0.0.0.0", True),  # noqa: S104 - that is what is refused
        (Role.OPERATOR, "::", True),
        (Role.OPERATOR, "127.0.0.2", False),
        (Role.ADMIN, "0.0.0.0", False),  # noqa: S104 - for a moment
    ):
        async with pair(tmp_path / f"{role}{bind.replace(':', '-')}", role) as (near, far, _):
            await call(near, "create_vm", "node-0", spec=spec("mine", start=True))
            asked = {"vm": "mine", "forward": ForwardSpec(host_port=0, guest_port=80, bind=bind)}
            if refused:
                with pytest.raises(Forbidden, match=r"127\.0\.0\.1; bind .* needs the role admin"):
                    await near.mesh.call("node-0", TABLE["add_forward"], asked, LOCAL_ADMIN)
                assert await call(far, "list_forwards", vm="mine") == []
            else:
                made = await near.mesh.call("node-0", TABLE["add_forward"], asked, LOCAL_ADMIN)
                assert await call(far, "list_forwards", vm="mine") == [made]
            there = await call(far, "add_forward", vm="far", forward=asked["forward"])
            assert there.bind == bind, "the machine's own users choose"


async def test_an_operator_here_opens_no_port_to_the_network_either(tmp_path: Path) -> None:
    """A token of this node, for a VM of this node and for one of a peer."""
    token = Caller(principal="token:ci", role=Role.OPERATOR)
    async with pair(tmp_path) as (near, _, _):
        for peer in (None, "node-0"):
            await call(near, "create_vm", peer, token, spec=spec("mine", start=True))
            for address in ("0.0.0.0", "::", "192.0.2.1"):  # noqa: S104 - that is what is refused
                wide = ForwardSpec(host_port=0, guest_port=80, bind=address)
                with pytest.raises(Forbidden, match="needs the role admin"):
                    await call(near, "add_forward", peer, token, vm="mine", forward=wide)
            near_by = ForwardSpec(host_port=0, guest_port=80, bind="127.0.0.2")
            assert (await call(near, "add_forward", peer, token, vm="mine", forward=near_by)).bind == "127.0.0.2"


async def test_what_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, _, _):
        first = await forward(near, peer="node-0")
        same = await forward(near, host_port=first.host_port, peer="node-0")
        assert same == first
        with pytest.raises(PortTaken):
            await forward(near, 81, host_port=first.host_port, peer="node-0")
        asked = ForwardSpec(host_port=0, guest_port=80)
        with pytest.raises(VmNotFound):
            await call(near, "add_forward", "node-0", vm="nope", forward=asked)
        with pytest.raises(VmNotFound):
            await call(near, "list_forwards", "node-0", vm="nope")
        with pytest.raises(PeerNotFound):
            await forward(near, peer="nobody")
        once = await call(near, "add_forward", "node-0", keyed("k"), vm="far", forward=asked)
        again = await call(near, "add_forward", "node-0", keyed("k"), vm="far", forward=asked)
        assert once == again
        await call(near, "stop_p2p")
        with pytest.raises(P2pStopped):
            await forward(near, peer="node-0")
        assert await get(first.host_port) == b""
        await call(near, "start_p2p")

        async def works() -> bool:
            return b"far" in await get(first.host_port)

        await eventually(works)


async def test_a_tunnel_outlives_the_agent_and_not_the_vm(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as (network, (far,)):
        await call(far, "create_vm", spec=spec("far", start=True))
        async with open_node_on(network, tmp_path, "near") as near:
            await join(near, far)
            made = await forward(near, peer="node-0")
        with pytest.raises(OSError, match="connect"):
            await get(made.host_port)
        async with open_node_on(network, tmp_path, "near") as near:
            assert await call(near, "list_forwards", "node-0", vm="far") == [made]

            async def works() -> bool:
                return b"far" in await get(made.host_port)

            await eventually(works)
            await call(far, "stop_vm", vm="far", force=True)
            assert await get(made.host_port) == b""
            await call(far, "start_vm", vm="far")
            assert await works()
            await call(far, "delete_vm", vm="far", force=True)
            assert await get(made.host_port) == b""
            with pytest.raises(OSError, match="connect"):
                await get(made.host_port)
            assert near.tunnels.kept == {}


async def test_a_port_whose_vm_is_gone_closes_though_nobody_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "WEED_EVERY", 0.05)
    async with pair(tmp_path) as (near, far, network):
        peer = far.peer_id
        made = await forward(near, peer=peer)
        network.partition([near.peer_id], [far.peer_id])
        await trio.sleep(0.3)
        network.heal()
        await trio.sleep(0.3)
        assert await call(near, "list_forwards", peer, vm="far") == [made]
        await call(far, "delete_vm", vm="far", force=True)

        async def closed() -> bool:
            return not near.tunnels.kept

        await eventually(closed)
        with pytest.raises(OSError, match="connect"):
            await get(made.host_port)


async def test_a_port_that_another_program_had_opens_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "WEED_EVERY", 0.05)
    async with open_fleet(tmp_path) as (network, (far,)):
        await call(far, "create_vm", spec=spec("far", start=True))
        async with open_node_on(network, tmp_path, "near") as near:
            await join(near, far)
            made = await forward(near, peer="node-0")
        [taken] = await listen("127.0.0.1", made.host_port)
        async with open_node_on(network, tmp_path, "near") as near:
            async with taken:
                assert [one.active for one in await call(near, "list_forwards", "node-0", vm="far")] == [False]

            async def works() -> bool:
                [one] = await call(near, "list_forwards", "node-0", vm="far")
                return one.active and b"far" in await get(made.host_port)

            await eventually(works, 30)


async def test_a_far_node_that_goes_away_ends_its_connections(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, network):
        listener(far, 7, echo_after_eof)
        port = (await forward(near, 7, peer="node-0")).host_port
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"x")
            network.partition([near.peer_id], [far.peer_id])
            with within(10), suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""


async def test_a_peer_that_talks_nonsense_gets_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as (near, far, _):
        running = near.mesh.require_running()
        await running.sessions.session_to(far.peer_id)
        for said in (b"", b"\x00", HEAD.pack(65535), HEAD.pack(3) + b"abc", HEAD.pack(1) + b"\xc1"):
            stream = await running.host.open_stream(far.peer_id, PROTOCOL)
            with trio.fail_after(20), suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                await stream.send_eof()
                assert await stream.receive_some(100) == b""
            await stream.aclose()
        made = await forward(near, peer="node-0")
        assert b"far" in await get(made.host_port)
        assert (await call(far, "get_vm", vm="far")).status == "running"
        assert await call(near, "list_vms", "node-0", LOCAL_ADMIN)


async def test_an_asker_who_has_gone_leaves_no_connection_to_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection stayed open until the collector came by, since its answer could not be sent any more."""
    dialled: list[trio.SocketStream] = []
    async with pair(tmp_path) as (near, far, _):
        dial = far.vms.forwards.dial

        async def dial_for_who_goes(record: Record, port: int) -> trio.SocketStream:
            dialled.append(await dial(record, port))
            stream.reset()
            return dialled[0]

        monkeypatch.setattr(far.vms.forwards, "dial", dial_for_who_goes)
        stream = await near.mesh.require_running().host.open_stream(far.peer_id, PROTOCOL)
        await stream.send_all(encode(TunnelRequest(vm="far", port=80, role=Role.ADMIN)))
        with trio.fail_after(30):
            while not dialled or dialled[0].socket.fileno() != -1:
                await trio.sleep(0.01)
