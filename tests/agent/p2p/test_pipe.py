"""How long a writer waits for a far side that takes nothing, through a socket and through a relay's stream."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.libp2p.pipe import Pipe, PipeBroken, SocketPipe
from twinshare.agent.p2p.libp2p.relay.circuit import StreamPipe

MUCH = bytes(16 << 20)
WRITE_TIMEOUT = 0.2


@asynccontextmanager
async def sockets() -> AsyncIterator[tuple[SocketPipe, trio.socket.SocketType]]:
    """A pipe, and the socket at its other end."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        with trio.socket.socket() as far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            await far.connect(listener.getsockname())
            near, _ = await listener.accept()
            pipe = SocketPipe(near, WRITE_TIMEOUT)
            yield pipe, far
            pipe.close()


async def test_a_far_side_that_takes_nothing_breaks_the_pipe() -> None:
    async with sockets() as (pipe, _):
        with trio.fail_after(20), pytest.raises(PipeBroken, match=r"took nothing for 0\.2 s"):
            await pipe.send(MUCH)


class Sipping:
    """A socket that takes a little at a time, each time within the write timeout."""

    taken = 0

    def setsockopt(self, *_option: int) -> None:
        """It has no options."""

    async def send(self, data: memoryview) -> int:
        await trio.sleep(WRITE_TIMEOUT / 2)
        size = min(len(data), 1 << 20)
        self.taken += size
        return size


async def test_a_far_side_that_takes_a_little_at_a_time_does_not(mock_clock: MockClock) -> None:
    """The write timeout is for each step, not for the whole: this takes several times as long."""
    mock_clock.autojump_threshold = 0
    far = Sipping()
    pipe = SocketPipe(far, WRITE_TIMEOUT)  # type: ignore[arg-type]  # of a socket what is asked
    started = trio.current_time()
    await pipe.send(MUCH)
    assert far.taken == len(MUCH)
    assert trio.current_time() - started > 2 * WRITE_TIMEOUT


class Stuck:
    """A relay's stream that takes nothing."""

    peer_id = "relay"

    async def send_all(self, data: object) -> None:
        await trio.sleep_forever()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return b""

    def reset(self) -> None:
        """Nothing is held."""


async def test_a_relay_that_takes_nothing_breaks_the_pipe(mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0
    pipe: Pipe = StreamPipe(Stuck(), b"", 15.0)  # type: ignore[arg-type]  # of a stream what is asked
    with trio.fail_after(16), pytest.raises(PipeBroken, match="took nothing for 15 s"):
        await pipe.send(b"x")


async def pour(pipe: Pipe) -> None:
    while True:
        await pipe.send(MUCH)


async def test_a_cut_wakes_whoever_waits() -> None:
    async with sockets() as (pipe, far):
        far.close()
        with trio.fail_after(20), pytest.raises(PipeBroken):
            await pour(pipe)


async def test_a_socket_of_which_no_pipe_can_be_made_is_closed() -> None:
    near, far = trio.socket.socketpair(socket.AF_UNIX)
    with far:
        with pytest.raises(OSError, match="not supported"):
            SocketPipe(near, 1.0)
        assert near.fileno() == -1
