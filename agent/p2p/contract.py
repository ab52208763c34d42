"""What every `Host` must do: the in-memory adapter and the one over libp2p both pass this check.

`await check_host(open_host)` raises AssertionError where a host breaks the port's promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeAlias

import trio
from trio.testing import check_half_closeable_stream

from ...protocols.errors import PeerUnreachable, TwinshareError, Unsupported
from .host import Admission, Direction, Gate, Host, PathKind, PeerEvent, PeerId, Stream

OpenHost: TypeAlias = Callable[[Gate], AbstractAsyncContextManager[Host]]
"""Opens a host with a new identity that the others can reach."""
Check: TypeAlias = Callable[[OpenHost], Awaitable[None]]

ECHO = "/contract/echo/1.0.0"
SINK = "/contract/sink/1.0.0"
BUG = "/contract/bug/1.0.0"
FOR_GUESTS = "/contract/guests/1.0.0"
_TIMEOUT = 5.0


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


async def check_host(open_host: OpenHost) -> None:
    """Run all checks, each with hosts of its own."""
    for check in CHECKS:
        with trio.fail_after(60):
            await check(open_host)


@asynccontextmanager
async def _open(open_host: OpenHost, *gates: Gate) -> AsyncIterator[Sequence[Host]]:
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(open_host(gate)) for gate in gates]
        for host in hosts:
            host.serve(ECHO, echo)
            host.serve(FOR_GUESTS, echo, guests=True)
        yield hosts


@asynccontextmanager
async def _connected(open_host: OpenHost) -> AsyncIterator[Sequence[Host]]:
    async with _open(open_host, admit_all, admit_all) as (near, far):
        await near.connect(far.peer_id, far.addresses)
        await _until(lambda: far.path(near.peer_id) is not None)
        yield near, far


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(_TIMEOUT):
        while not condition():  # noqa: ASYNC110 - a port has no event for everything that a check waits for
            await trio.sleep(0.01)


async def _fails(kind: type[TwinshareError], call: Awaitable[object]) -> TwinshareError:
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def _check_broken(stream: Stream) -> None:
    """Assert that the stream can neither be read nor written."""
    for call in (stream.receive_some(), stream.send_all(b"x")):
        try:
            await call
        except trio.BrokenResourceError:
            continue
        raise AssertionError("the stream is not broken")


async def _fill(stream: Stream) -> None:
    """Send until sending blocks, and still blocks after bytes in flight have arrived."""
    blocked = 0
    while blocked < 2:
        with trio.move_on_after(0.03):
            await stream.wait_send_all_might_not_block()
            blocked = -1
            await stream.send_all(bytes(1024 * 1024))
        blocked += 1


async def _check_echo(host: Host, peer_id: PeerId, protocol: str = ECHO) -> None:
    stream = await host.open_stream(peer_id, protocol)
    await stream.send_all(b"hello")
    await stream.send_eof()
    answer = b""
    while data := await stream.receive_some():
        answer += data
    await stream.aclose()
    assert answer == b"hello"


# -- connections


async def check_a_connection_is_seen_on_both_sides(open_host: OpenHost) -> None:
    async with _open(open_host, admit_all, admit_all) as (near, far):
        assert near.peer_id != far.peer_id
        assert all(address.endswith(f"/p2p/{far.peer_id}") for address in far.addresses)
        assert not near.connections
        assert near.path(far.peer_id) is None
        made = await near.connect(far.peer_id, far.addresses)
        assert made.peer_id == far.peer_id
        assert (made.direction, made.path) == (Direction.OUTBOUND, PathKind.DIRECT)
        assert await near.events.receive() == PeerEvent(peer_id=far.peer_id, path=PathKind.DIRECT)
        assert await far.events.receive() == PeerEvent(peer_id=near.peer_id, path=PathKind.DIRECT)
        assert [each.direction for each in far.connections] == [Direction.INBOUND]
        assert near.path(far.peer_id) is PathKind.DIRECT
        assert await near.connect(far.peer_id, []) == made
        assert 0 <= await near.ping(far.peer_id) < _TIMEOUT


async def check_only_the_peer_that_is_meant_is_connected_to(open_host: OpenHost) -> None:
    async with _open(open_host, admit_all, admit_all, admit_all) as (near, far, other):
        await _fails(PeerUnreachable, near.connect(far.peer_id, []))
        await _fails(PeerUnreachable, near.connect(far.peer_id, ["nonsense", "/ip4/127.0.0.1/udp/1"]))
        bare = [address.rpartition("/p2p/")[0] for address in other.addresses]
        await _fails(PeerUnreachable, near.connect(far.peer_id, bare))
        assert near.path(far.peer_id) is near.path(other.peer_id) is None
        await near.connect(far.peer_id, ["nonsense", *bare, *far.addresses])
        await _check_echo(near, far.peer_id)


async def check_disconnecting_ends_everything(open_host: OpenHost) -> None:
    async with _connected(open_host) as (near, far):
        stream = await near.open_stream(far.peer_id, ECHO)
        await far.disconnect(near.peer_id)
        await _until(lambda: not near.connections and not far.connections)
        await _check_broken(stream)
        for host, peer in ((near, far), (far, near)):
            assert [(await host.events.receive()).connected for _ in range(2)] == [True, False]
            await _fails(PeerUnreachable, host.open_stream(peer.peer_id, ECHO))
            await _fails(PeerUnreachable, host.ping(peer.peer_id))
        await far.disconnect(near.peer_id)
        await near.connect(far.peer_id, far.addresses)
        await _check_echo(near, far.peer_id)


async def check_a_host_that_leaves_breaks_its_streams(open_host: OpenHost) -> None:
    async with _open(open_host, admit_all) as (near,):
        async with _open(open_host, admit_all) as (far,):
            gone, addresses = far.peer_id, far.addresses
            await near.connect(gone, addresses)
            stream = await near.open_stream(gone, ECHO)
        await _until(lambda: near.path(gone) is None)
        await _check_broken(stream)
        await _fails(PeerUnreachable, near.connect(gone, addresses, deadline=1.0))


# -- the gate


async def check_a_stranger_is_refused(open_host: OpenHost) -> None:
    async with _open(open_host, admit_all, Guests()) as (stranger, host):
        error = await _fails(PeerUnreachable, stranger.connect(host.peer_id, host.addresses))
        assert error.details["refused"]
        await _fails(PeerUnreachable, host.connect(stranger.peer_id, stranger.addresses))
        await _until(lambda: not stranger.connections)
        assert not host.connections


async def check_a_guest_gets_the_protocols_for_guests_alone(open_host: OpenHost) -> None:
    gate = Guests()
    async with _open(open_host, admit_all, gate) as (guest, host):
        gate.admitted[guest.peer_id] = Admission.GUEST
        await guest.connect(host.peer_id, host.addresses)
        await _check_echo(guest, host.peer_id, FOR_GUESTS)
        await _fails(Unsupported, guest.open_stream(host.peer_id, ECHO))
        gate.admitted[guest.peer_id] = Admission.MEMBER
        await _check_echo(guest, host.peer_id)
        gate.admitted[guest.peer_id] = Admission.REFUSED
        await _fails(TwinshareError, guest.open_stream(host.peer_id, ECHO))
        await _fails(TwinshareError, guest.open_stream(host.peer_id, FOR_GUESTS))


# -- streams


async def check_streams_keep_trios_contract(open_host: OpenHost) -> None:
    async with _connected(open_host) as (near, far):
        sent, received = trio.open_memory_channel[Stream](1)

        async def hand_over(stream: Stream) -> None:
            await sent.send(stream)
            await trio.sleep_forever()

        far.serve(SINK, hand_over)

        async def pair() -> tuple[Stream, Stream]:
            return await near.open_stream(far.peer_id, SINK), await received.receive()

        async def filled() -> tuple[Stream, Stream]:
            ends = await pair()
            for end in ends:
                await _fill(end)
            return ends

        await check_half_closeable_stream(pair, filled)


async def check_a_stream_knows_its_ends(open_host: OpenHost) -> None:
    async with _connected(open_host) as (near, far):
        sent, received = trio.open_memory_channel[tuple[PeerId, str]](1)

        async def note(stream: Stream) -> None:
            await sent.send((stream.peer_id, stream.protocol))

        far.serve(SINK, note)
        stream = await near.open_stream(far.peer_id, SINK)
        assert (stream.peer_id, stream.protocol) == (far.peer_id, SINK)
        assert await received.receive() == (near.peer_id, SINK)
        assert await stream.receive_some() == b"", "the stream is closed when its handler returns"
        await _fails(Unsupported, near.open_stream(far.peer_id, "/contract/nobody/1.0.0"))
        far.serve(ECHO, note)
        await near.open_stream(far.peer_id, ECHO)
        assert await received.receive() == (near.peer_id, ECHO), "the last handler that is served counts"


async def check_a_reset_breaks_the_other_end(open_host: OpenHost) -> None:
    async with _connected(open_host) as (near, far):
        was_reset = trio.Event()

        async def read_until_reset(stream: Stream) -> None:
            try:
                await stream.receive_some()
            except trio.BrokenResourceError:
                was_reset.set()

        far.serve(SINK, read_until_reset)
        stream = await near.open_stream(far.peer_id, SINK)
        stream.reset()
        stream.reset()
        with trio.fail_after(_TIMEOUT):
            await was_reset.wait()
        await _check_echo(near, far.peer_id)


async def check_a_handler_that_is_cancelled_resets_its_stream(open_host: OpenHost) -> None:
    async with _connected(open_host) as (near, far):

        async def give_up(stream: Stream) -> None:
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.receive_some()
            stream.reset()

        far.serve(BUG, give_up)
        await _check_broken(await near.open_stream(far.peer_id, BUG))
        await _check_echo(near, far.peer_id)


async def check_bulk_goes_both_ways_at_once(open_host: OpenHost) -> None:
    size, step = 6_000_000, 100_001
    async with _connected(open_host) as (near, far):
        stream = await near.open_stream(far.peer_id, ECHO)
        sent = bytes(i % 251 for i in range(step)) * (size // step)
        got = bytearray()

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive_some():
                got += data
        assert got == sent


async def check_cancelled_calls_leave_nothing(open_host: OpenHost) -> None:
    """More streams are cancelled while they open than a host could keep."""
    async with _connected(open_host) as (near, far):
        await _check_echo(near, far.peer_id)
        for rounds in range(400):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(near.open_stream, far.peer_id, ECHO)
                    for _ in range(rounds % 7):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
        await _check_echo(near, far.peer_id)
        assert len(near.connections) == 1


CHECKS: Sequence[Check] = (
    check_a_connection_is_seen_on_both_sides,
    check_only_the_peer_that_is_meant_is_connected_to,
    check_disconnecting_ends_everything,
    check_a_host_that_leaves_breaks_its_streams,
    check_a_stranger_is_refused,
    check_a_guest_gets_the_protocols_for_guests_alone,
    check_streams_keep_trios_contract,
    check_a_stream_knows_its_ends,
    check_a_reset_breaks_the_other_end,
    check_a_handler_that_is_cancelled_resets_its_stream,
    check_bulk_goes_both_ways_at_once,
    check_cancelled_calls_leave_nothing,
)
