"""Threads that wait on sockets: whoever waits for them ends them, and slow bytes do not hold them."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import pytest
import trio

from twinshare.agent.socket_threads import receive_exactly, run_on_socket
from twinshare.protocols.errors import PeerMisbehaved


async def test_work_is_done_and_leaves_the_socket_open() -> None:
    limiter = trio.CapacityLimiter(1)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"hello")
        assert await run_on_socket(near, lambda: near.recv(5), limiter=limiter) == b"hello"
        far.sendall(b"again")
        assert await run_on_socket(near, lambda: near.recv(5), limiter=limiter) == b"again"
    assert limiter.borrowed_tokens == 0


async def test_an_error_of_the_work_comes_out_as_itself() -> None:
    def work() -> None:
        raise PeerMisbehaved("no")

    near, far = socket.socketpair()
    with near, far, pytest.raises(PeerMisbehaved):
        await run_on_socket(near, work, limiter=trio.CapacityLimiter(1))


@pytest.mark.parametrize("end", ["cancelled", "the stream ends"])
async def test_a_thread_that_waits_is_woken(end: str) -> None:
    limiter = trio.CapacityLimiter(1)
    near, far = socket.socketpair()
    waiting, over = trio.Event(), trio.Event()
    got: list[bytes] = []

    def work() -> None:
        trio.from_thread.run_sync(waiting.set)
        got.append(near.recv(1))

    with near, far, trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_on_socket, near, work, limiter=limiter, until=over.wait))
            await waiting.wait()
            if end == "cancelled":
                nursery.cancel_scope.cancel()
            else:
                over.set()
        assert got == [b""]
        assert limiter.borrowed_tokens == 0
        assert far.recv(1) == b""


class OneByOne(socket.socket):
    """A socket whose bytes come one at a time."""

    def recv_into(self, buffer: Any, *_: Any) -> int:
        return super().recv_into(buffer, 1)


def test_bytes_that_come_one_by_one_take_no_longer_than_they_may() -> None:
    end, far = socket.socketpair()
    with OneByOne(fileno=end.detach()) as near, far:
        far.sendall(b"abc")
        far.shutdown(socket.SHUT_WR)
        with memoryview(bytearray(1)) as one, memoryview(bytearray(2)) as two:
            assert receive_exactly(near, one, -1.0), "what has come has come"
            with pytest.raises(TimeoutError):
                receive_exactly(near, two, -1.0)
            assert receive_exactly(near, one, 60.0)
            assert not receive_exactly(near, one, 60.0)
