"""Blocking work on a socket in a worker thread, which ends with the task that waits for it."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from ..protocols.errors import TwinshareError

T = TypeVar("T")


async def run_on_socket(
    sock: socket.socket,
    work: Callable[[], T],
    *,
    limiter: trio.CapacityLimiter,
    until: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> T:
    """Run `work`, which blocks on `sock`, in a thread; shut the socket down when cancelled, or when `until` returns.

    The thread has ended when this returns. The socket stays the caller's, and is not shut down by work that ends.
    Raises: what `work` raises, if it is a TwinshareError, an OSError or a ValueError; anything else is a bug and comes
    in a group.
    """
    results: list[T] = []
    failures: list[Exception] = []

    def guarded() -> None:
        try:
            results.append(work())
        except (TwinshareError, OSError, ValueError) as error:
            failures.append(error)

    async def watch() -> None:
        try:
            await until()
        finally:
            if not results and not failures:
                shut_down(sock)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await trio.to_thread.run_sync(guarded, limiter=limiter)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return results[0]


def shut_down(sock: socket.socket) -> None:
    """Wake the thread that waits on the socket. The method of a TLS socket is not made for another thread."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def receive_exactly(sock: socket.socket, view: memoryview, within: float) -> bool:
    """Fill `view` within so many seconds, and once more the socket's time-out; False when the end comes first.

    Blocking. Raises: TimeoutError, OSError.
    """
    at, deadline = 0, time.monotonic() + within
    while at < len(view):
        count = sock.recv_into(view[at:])
        if not count:
            return False
        at += count
        if at < len(view) and time.monotonic() > deadline:
            raise TimeoutError("the far side is too slow")
    return True
