"""Hosts, gates and handlers for the contract checks of the port `Host`, and for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import trio

from ...protocols.errors import TwinshareError
from .host import Admission, Direction, Gate, Host, PeerId, Stream

OpenHost: TypeAlias = Callable[[Gate], AbstractAsyncContextManager[Host]]
"""Opens a host with a new identity that the others can reach."""
Check: TypeAlias = Callable[[OpenHost], Awaitable[None]]

ECHO = "/contract/echo/1.0.0"
SINK = "/contract/sink/1.0.0"
BUG = "/contract/bug/1.0.0"
FOR_GUESTS = "/contract/guests/1.0.0"
TIMEOUT = 5.0


def admit_all(_peer: PeerId, _direction: Direction) -> Admission:
    return Admission.MEMBER


class Guests:
    """A gate that refuses every peer that is not in `admitted`."""

    def __init__(self) -> None:
        self.admitted: dict[PeerId, Admission] = {}

    def __call__(self, peer_id: PeerId, _direction: Direction) -> Admission:
        return self.admitted.get(peer_id, Admission.REFUSED)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def open_hosts(open_host: OpenHost, *gates: Gate) -> AsyncIterator[Sequence[Host]]:
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(open_host(gate)) for gate in gates]
        for host in hosts:
            host.serve(ECHO, echo)
            host.serve(FOR_GUESTS, echo, guests=True)
        yield hosts


@asynccontextmanager
async def connected(open_host: OpenHost) -> AsyncIterator[Sequence[Host]]:
    async with open_hosts(open_host, admit_all, admit_all) as (near, far):
        await near.connect(far.peer_id, far.addresses)
        await until(lambda: far.path(near.peer_id) is not None)
        yield near, far


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - a port has no event for everything that a check waits for
            await trio.sleep(0.01)


async def fails(kind: type[TwinshareError], call: Awaitable[object]) -> TwinshareError:
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def check_broken(stream: Stream) -> None:
    """Assert that the stream can neither be read nor written."""
    for call in (stream.receive_some(), stream.send_all(b"x")):
        try:
            await call
        except trio.BrokenResourceError:
            continue
        raise AssertionError("the stream is not broken")


async def fill(stream: Stream) -> None:
    """Send until sending blocks, and still blocks after bytes in flight have arrived."""
    blocked = 0
    while blocked < 2:
        with trio.move_on_after(0.03):
            await stream.wait_send_all_might_not_block()
            blocked = -1
            await stream.send_all(bytes(1024 * 1024))
        blocked += 1


async def check_echo(host: Host, peer_id: PeerId, protocol: str = ECHO) -> None:
    stream = await host.open_stream(peer_id, protocol)
    await stream.send_all(b"hello")
    await stream.send_eof()
    answer = b""
    while data := await stream.receive_some():
        answer += data
    await stream.aclose()
    assert answer == b"hello"
