"""What was opened ends within a second of the authority that it was opened with: here, at peers, at third nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import TABLE, call, eventually, join, open_fleet, open_node_on
from tests.nodes.test_tunnels import listener
from twinshare.agent.node import Node
from twinshare.agent.p2p.peer_session import PeerSession
from twinshare.agent.reach.consoles import Console
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, PeerUnreachable, TwinshareError, Unauthenticated
from twinshare.protocols.events import EventKind
from twinshare.protocols.messages import Follow
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.vm import ForwardSpec

WITHIN = 1.0
PORT = ForwardSpec(host_port=0, guest_port=22)
CI = Caller(principal="token:ci", role=Role.ADMIN)


async def end_of_console(console: Console) -> TwinshareError:
    """Why a console ended."""
    while True:
        try:
            await console.receive()
        except TwinshareError as error:
            return error


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def revoke(by: Node, peer: Node) -> None:
    await by.call(LOCAL_ADMIN, TABLE["revoke_peer"], {"peer": peer.peer_id})


async def end_of_stream(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some(4096):
            pass


@asynccontextmanager
async def all_that_can_be_open(near: Node, far: Node, vm: str) -> AsyncIterator[trio.Event]:
    """A console, a tunnel and an event stream of `near` at `far`; the event is set when all of them have ended."""
    ended = trio.Event()
    listener(far, PORT.guest_port, echo)
    there = await near.mesh.require_running().sessions.session_to(far.peer_id)
    forward = await call(near, "add_forward", far.peer_id, vm=vm, forward=PORT)
    async with trio.open_nursery() as nursery:
        opened = [trio.Event() for _ in range(3)]
        closed = [trio.Event() for _ in range(3)]

        async def console() -> None:
            async with near.console(LOCAL_ADMIN, vm, far.peer_id) as one:
                opened[0].set()
                assert isinstance(await end_of_console(one), PeerUnreachable | Forbidden)
            closed[0].set()

        async def tunnel() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", forward.host_port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some(5)
                opened[1].set()
                await end_of_stream(stream)
            closed[1].set()

        async def events(session: PeerSession) -> None:
            with suppress(PeerUnreachable, Forbidden):
                async with session.follow(Follow(types=["vm."])) as feed:
                    opened[2].set()
                    async for _ in feed:
                        pass
            closed[2].set()

        nursery.start_soon(console)
        nursery.start_soon(tunnel)
        nursery.start_soon(events, there)
        with trio.fail_after(60):
            for event in opened:
                await event.wait()

        async def watch() -> None:
            for event in closed:
                await event.wait()
            ended.set()

        nursery.start_soon(watch)
        yield ended
        nursery.cancel_scope.cancel()


async def test_a_revocation_ends_all_that_the_peer_has_open_here(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await call(a, "create_vm", spec=spec("web", start=True))
        async with all_that_can_be_open(b, a, "web") as ended:
            await revoke(a, b)
            with trio.fail_after(WITHIN):
                await ended.wait()


async def test_a_revocation_ends_what_the_peer_has_open_at_others(tmp_path: Path) -> None:
    """The founder revokes; the stream is between two others."""
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (_, (a, b, c)):
        await call(c, "create_vm", spec=spec("web", start=True))
        async with all_that_can_be_open(b, c, "web") as ended:
            await revoke(a, b)
            with trio.fail_after(WITHIN):
                await ended.wait()
        with pytest.raises(TwinshareError):
            await call(b, "list_vms", c.peer_id)


async def test_what_a_token_has_open_at_a_peer_ends_with_it(tmp_path: Path) -> None:
    """Through the node that knows the token: it keeps the peer's streams on its behalf."""
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await b.tokens.create(TokenRequest(name="ci"))
        await call(b, "create_vm", a.peer_id, CI, spec=spec("web", start=True))
        listener(a, PORT.guest_port, echo)
        forward = await call(b, "add_forward", a.peer_id, CI, vm="web", forward=PORT)
        opened, ended = trio.Event(), trio.Event()

        async def console() -> None:
            with suppress(Unauthenticated), b.tokens.bound(CI):
                async with b.console(CI, "web", a.peer_id) as one:
                    opened.set()
                    await end_of_console(one)
            ended.set()

        async with (
            trio.open_nursery() as nursery,
            await trio.open_tcp_stream("127.0.0.1", forward.host_port) as stream,
        ):
            nursery.start_soon(console)
            await stream.send_all(b"hello")
            await opened.wait()
            await b.tokens.revoke("ci")
            with trio.fail_after(WITHIN):
                await ended.wait()
                await end_of_stream(stream)
        await eventually(lambda: nobody_attached(a))


async def nobody_attached(node: Node) -> bool:
    await trio.lowlevel.checkpoint()
    return not node.consoles._connections


async def test_a_ticket_ends_with_the_token_that_made_it(tmp_path: Path) -> None:
    async with open_fleet(tmp_path) as (network, (a,)), open_node_on(network, tmp_path, "joiner") as joiner:
        await a.tokens.create(TokenRequest(name="ci", role=Role.ADMIN))
        ticket = await call(a, "invite_peer", None, CI, invite=InviteRequest(uses=2))
        await a.tokens.revoke("ci")
        await trio.sleep(WITHIN)
        with pytest.raises(TwinshareError):
            await call(joiner, "join_fleet", ticket=ticket.ticket)
        assert await call(a, "list_peers") == []
        assert not a.mesh.context.tickets.live
        await join(joiner, a)
        assert len(await call(a, "list_peers")) == 1


async def test_a_node_that_was_away_refuses_at_its_first_contact(tmp_path: Path) -> None:
    """It hears of the revocation from the first member that it meets, and of nothing before."""
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (network, (a, b, c)):
        await call(c, "create_vm", spec=spec("web", start=True))
        await all_online(a, b, c)
        network.partition([a.peer_id, b.peer_id], [c.peer_id])
        await revoke(a, b)
        network.heal()
        network.cut(b.peer_id, c.peer_id)
        await call(c, "list_vms", a.peer_id)
        await eventually(lambda: refuses(c, b.peer_id), WITHIN)
        network.heal()
        with pytest.raises(TwinshareError):
            await call(b, "list_vms", c.peer_id)


async def test_a_revoked_node_that_was_away_itself_is_refused_at_its_first_contact(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (network, (a, b, c)):
        await all_online(a, b, c)
        network.partition([a.peer_id, c.peer_id], [b.peer_id])
        await revoke(a, b)
        await eventually(lambda: refuses(c, b.peer_id))
        seen = {node.peer_id: node.events.last_id for node in (a, c)}
        network.heal()
        for node in (a, c):
            with pytest.raises(TwinshareError):
                await call(b, "list_vms", node.peer_id)
            async with node.events.subscribe(seen[node.peer_id]) as events:
                with suppress(trio.WouldBlock):
                    while event := events.receive_nowait():
                        assert (event.type, event.data.get("id")) != (EventKind.PEER_ONLINE, b.peer_id)


async def all_online(*nodes: Node) -> None:
    async def settled() -> bool:
        await trio.lowlevel.checkpoint()
        return all(len(node.mesh.require_running().sessions.live) == len(nodes) - 1 for node in nodes)

    await eventually(settled)


async def refuses(node: Node, peer: str) -> bool:
    await trio.lowlevel.checkpoint()
    return node.mesh.context.membership.valid_certificate(peer) is None
