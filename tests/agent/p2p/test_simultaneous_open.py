"""E1: both ends dial at the same time. However TCP makes connections of that, one is left, and it works."""

from __future__ import annotations

import pytest
import trio

from twinshare.agent.p2p.addresses import parse
from twinshare.agent.p2p.host import Direction
from twinshare.agent.p2p.libp2p.host import LibP2pHost
from twinshare.agent.p2p.libp2p.pipe import SocketPipe

from .hosts import open_echo, open_hosts, talks, until


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """The two ends of one TCP connection."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        dialled = trio.socket.socket()
        await dialled.connect(listener.getsockname())
        return dialled, (await listener.accept())[0]


async def adopt(host: LibP2pHost, sock: trio.socket.SocketType, other: LibP2pHost) -> None:
    """Make a connection of a socket as the one that dialled it does."""
    upgraded = await host.swarm.upgrader.upgrade(SocketPipe(sock, 5.0), Direction.OUTBOUND, other.peer_id)
    host.swarm.adopt(upgraded, parse(other.addresses[0]), Direction.OUTBOUND)


@pytest.mark.parametrize("turn", range(4))
async def test_one_connection_that_both_ends_have_dialled_works(turn: int) -> None:
    async with open_hosts(2) as (one, other):
        ends = await tcp_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, one, ends[0], other)
            nursery.start_soon(adopt, other, ends[1], one)
        await talks(one, other.peer_id, b"x" * 200_000)
        await talks(other, one.peer_id, b"y" * 200_000)
        assert len(one.connections) == len(other.connections) == 1


async def test_of_two_connections_at_once_one_is_left_and_nobody_is_cut_off() -> None:
    for turn in range(8):
        async with open_echo() as one, open_echo() as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.connect, other.peer_id, other.addresses)
                nursery.start_soon(other.connect, one.peer_id, one.addresses)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talks, one, other.peer_id, b"x" * 100_000)
                nursery.start_soon(talks, other, one.peer_id, b"y" * 100_000)
            await until(lambda a=one, b=other: len(a.connections) == len(b.connections) == 1)
            for host in (one, other):
                waiting = host.events.statistics().current_buffer_used
                seen = [host.events.receive_nowait() for _ in range(waiting)]
                assert [event.connected for event in seen] == [True], f"turn {turn}"
            await talks(one, other.peer_id)
