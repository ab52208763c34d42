"""Who gives way when half-open connections pile up."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from tests.agent.p2p.hosts import open_echo, open_hosts, raw_channel, raw_pipe, talks, until
from twinshare.agent.p2p.libp2p.half_open import HalfOpen
from twinshare.agent.p2p.libp2p.pipe import PipeBroken, SocketPipe
from twinshare.agent.p2p.libp2p.settings import HostSettings


def test_the_oldest_of_an_address_gives_way_to_its_newest() -> None:
    book: HalfOpen[int] = HalfOpen(most=100, most_each=2)
    assert [book.add("a", number) for number in (1, 2, 3, 4)] == [None, None, 1, 2]
    assert len(book) == 2


def test_when_all_are_full_the_greediest_address_gives_way() -> None:
    book: HalfOpen[int] = HalfOpen(most=3, most_each=3)
    for address, number in (("a", 1), ("a", 2), ("b", 3)):
        book.add(address, number)
    assert book.add("c", 4) == 1
    assert book.add("c", 5) in (2, 4)


def test_what_is_done_makes_room() -> None:
    book: HalfOpen[int] = HalfOpen(most=2, most_each=2)
    book.add("a", 1)
    book.remove("a", 1)
    book.remove("a", 1)
    assert len(book) == 0
    assert [book.add("a", number) for number in (2, 3)] == [None, None]


async def hung_up(pipe: SocketPipe, within: float = 0.3) -> bool:
    """Whether the far side ends the connection within so many seconds; what it says before is nothing to us."""
    with trio.move_on_after(within):
        try:
            while await pipe.receive():
                pass
        except PipeBroken:
            return True
        return True
    return False


@pytest.mark.parametrize("bound", [HostSettings(half_open_each=2), HostSettings(half_open=2)])
async def test_what_gives_way_is_hung_up_on(bound: HostSettings) -> None:
    """Long before its handshake is out of time; and what stays can still become a connection."""
    async with open_echo(settings=bound) as host, open_hosts(1) as (peer,), AsyncExitStack() as stack:
        pipes = []
        for number in range(4):
            pipes.append(await stack.enter_async_context(raw_pipe(host)))
            await until(lambda number=number: host.half_open == min(number + 1, 2))
        with trio.fail_after(bound.upgrade_deadline / 2):
            assert [await hung_up(pipe, 30) for pipe in pipes[:2]] == [True, True]
            assert [await hung_up(pipe) for pipe in pipes[2:]] == [False, False]
        await stack.enter_async_context(raw_channel(host))
        with trio.fail_after(bound.upgrade_deadline / 2):
            assert await hung_up(pipes[2], 30)
        assert not await hung_up(pipes[3])
        await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)
