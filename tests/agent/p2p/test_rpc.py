"""Calls between two nodes in memory: typed both ways, cancelled over there, cut off in time, nothing left behind."""

import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.agent.p2p.workshop import Pair, Piece, open_pair, operation
from tests.agent.probe import probe
from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.agent.p2p.peer_session import PROTOCOL, open_peer_session
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    PeerMisbehaved,
    PeerUnreachable,
    TooLarge,
    TwinshareError,
    Unsupported,
    WrongState,
)
from twinshare.protocols.frames import MAX_FRAME, Frame, Kind, encode
from twinshare.protocols.messages import Follow, Hello, Request
from twinshare.protocols.operation import Detached
from twinshare.protocols.session import MAX_CALLS


async def settle() -> None:
    """Let every task go as far as it can."""
    await trio.testing.wait_all_tasks_blocked()


async def nothing_left(pair: Pair) -> None:
    await settle()
    assert pair.server.in_flight == 0
    assert pair.shop.busy == 0
    assert pair.session is not None
    assert pair.session.in_flight == 0


async def test_arguments_and_results_are_typed_and_the_caller_is_the_peer() -> None:
    async with open_pair() as pair:
        assert await pair.call("make", piece=Piece(name="cog", size=3)) == Piece(name="cog", size=3)
        [caller] = pair.shop.callers
        assert (caller.principal, caller.role, caller.detach) == ("a", Role.ADMIN, False)
        assert caller.idempotency_key
        assert pair.neighbours.heard == [("a", Hello(name="a"))]
        assert pair.session is not None
        assert pair.session.greeting.name == "b"
        await nothing_left(pair)


async def test_the_key_travels_and_a_detached_call_gives_its_operation() -> None:
    async with open_pair() as pair:
        caller = Caller(principal="local", role=Role.ADMIN, idempotency_key="my-key", detach=True)
        with pytest.raises(Detached) as detached:
            await pair.call("make", caller, piece=Piece(name="cog"))
        assert detached.value.operation.target == "cog"
        assert pair.shop.callers[0].idempotency_key == "my-key"
        assert pair.shop.made == []


async def test_errors_arrive_as_the_same_class() -> None:
    async with open_pair() as pair:
        with pytest.raises(WrongState, match="cog is in use") as raised:
            await pair.call("destroy", name="cog")
        assert raised.value.details == {"name": "cog"}


@pytest.mark.expects_errors
async def test_a_bug_is_answered_with_a_mark_and_says_nothing_of_itself() -> None:
    async with open_pair() as pair:
        with pytest.raises(
            TwinshareError, match=r"internal error; the log of the node has it as [0-9a-f]{8}$"
        ) as raised:
            await pair.call("fault")
        assert type(raised.value) is TwinshareError
        assert await pair.call("echo", text="still here") == "still here"


async def test_no_peer_gets_more_than_its_role_nor_more_than_the_user_behind_it() -> None:
    async with open_pair() as pair:
        pair.neighbours.roles["a"] = Role.VIEWER
        assert await pair.call("echo", text="x") == "x"
        with pytest.raises(Forbidden, match="operator"):
            await pair.call("make", piece=Piece(name="cog"))
        pair.neighbours.roles["a"] = Role.ADMIN
        with pytest.raises(Forbidden, match="operator"):
            await pair.call("make", Caller(principal="token:ann", role=Role.VIEWER), piece=Piece(name="cog"))
        assert pair.shop.made == []


async def test_local_and_unknown_operations_and_wrong_arguments_get_typed_answers() -> None:
    async with open_pair() as pair:
        with pytest.raises(Forbidden, match="own users"):
            await pair.call("secret")
        assert pair.session is not None
        with pytest.raises(Unsupported, match="teleport"):
            await pair.session.call("teleport", request({}))
        with pytest.raises(InvalidRequest) as raised:
            await pair.session.call("make", request({"piece": {"name": 5}}))
        assert raised.value.details["path"] == "piece.name"
        with pytest.raises(TooLarge):
            await pair.call("large", size=MAX_FRAME)
        with pytest.raises(TooLarge):
            await pair.call("echo", text="x" * MAX_FRAME)
        assert len(await pair.call("large", size=MAX_FRAME // 2)) == MAX_FRAME // 2
        await nothing_left(pair)


def request(arguments: object, timeout: float = 30.0, credit: int = 0) -> Request:
    return Request(timeout, Role.ADMIN, None, False, credit, msgspec.Raw(msgspec.msgpack.encode(arguments)))


async def test_a_cancelled_read_ends_over_there_and_its_place_is_free_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        for _ in range(MAX_CALLS * 2):
            with trio.move_on_after(0.1):
                await pair.call("slow", seconds=1000.0)
        await settle()
        assert pair.shop.cancelled == MAX_CALLS * 2
        await nothing_left(pair)


async def test_a_deadline_is_kept_over_there(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        with pytest.raises(DeadlineExceeded, match="slow was not done within 3 s"):
            await pair.call("slow", seconds=1000.0, timeout=3)
        assert trio.current_time() < 4
        await nothing_left(pair)


ENDINGS: dict[str, Callable[[Pair], None]] = {
    "killed": lambda pair: pair.network.drop("a", "b"),
    "stopped": lambda pair: pair.network.freeze("b"),
    "cut": lambda pair: pair.network.cut("a", "b"),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS.keys())
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("slow", {"seconds": 1e4}), ("make", {"piece": Piece(name="cog")})],
    ids=["read", "mutation"],
)
async def test_a_peer_that_is_gone_is_an_error_in_time(
    end: Callable[[Pair], None], name: str, arguments: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_pair() as pair:
        outcome: list[Exception] = []

        async def call() -> None:
            try:
                await pair.call(name, **arguments)
            except TwinshareError as error:
                outcome.append(error)

        async with trio.open_nursery() as nursery:
            if name == "make":
                end(pair)
                nursery.start_soon(call)
            else:
                nursery.start_soon(call)
                await settle()
                end(pair)
        assert trio.current_time() < 6
        assert isinstance(outcome[0], PeerUnreachable)
        assert ("idempotency_key" in outcome[0].details) == (name == "make" and "lost" in outcome[0].message)
        pair.network.heal()
        with pytest.raises(PeerUnreachable):
            await pair.call("echo", text="the session is over")
        await settle()
        assert pair.server.in_flight == 0
        assert pair.shop.busy == 0


async def test_the_owner_notices_a_caller_that_is_gone(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair(peer_timeout=1e6) as pair, trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(PeerUnreachable):
                await pair.call("slow", seconds=1e9)

        nursery.start_soon(call)
        await settle()
        pair.network.freeze("a")
        await trio.sleep(16)
        assert pair.server.in_flight == 0
        assert pair.shop.cancelled == 1
        nursery.cancel_scope.cancel()


async def test_a_node_that_stood_still_does_not_take_that_for_its_peers_silence(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Neither end runs for an hour, as when the machine is out of CPU: neither has heard, nor asked, the other."""
    async with open_pair() as pair:
        for _ in range(3):
            await settle()
            mock_clock.jump(3600)
            assert await pair.call("echo", text="x") == "x"
        await settle()
        assert pair.session is not None
        assert not pair.session.over.is_set()
        await nothing_left(pair)


async def test_an_idle_line_lives_on(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        await trio.sleep(3600)
        assert await pair.call("echo", text="x") == "x"


async def test_a_new_line_of_a_peer_takes_the_place_of_its_old_one() -> None:
    async with open_pair() as pair, open_peer_session(pair.a, "b", Hello(name="a"), 15) as second:
        await settle()
        assert pair.session is not None
        assert pair.session.over.is_set()
        pair.session = second
        assert await pair.call("echo", text="x") == "x"


async def test_events_are_followed_with_credit_and_a_slow_reader_holds_up_nobody_else() -> None:
    async with open_pair() as pair:
        assert pair.session is not None
        for number in range(10):
            pair.events.publish(probe("vm.state", number=number))
            pair.events.publish(probe("op.done"))
        async with pair.session.follow(Follow(after=0, types=["vm."])) as feed:
            seen = [(await feed.__anext__()).data["number"] for _ in range(10)]
            for number in range(10, 500):
                pair.events.publish(probe("vm.state", number=number))
            await settle()
            assert await pair.call("echo", text="x") == "x"
            async for event in feed:
                seen.append(event.data["number"])
                if len(seen) == 500:
                    break
            assert seen == list(range(500))
        await nothing_left(pair)


async def test_a_feed_ends_with_its_line() -> None:
    async with open_pair() as pair:
        assert pair.session is not None
        async with pair.session.follow(Follow()) as feed:
            await settle()
            pair.network.drop("a", "b")
            assert [event async for event in feed] == []


@pytest.mark.parametrize("seed", range(3))
async def test_random_cancellations_hurt_no_other_call(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(seed)
    network = MemoryNetwork(delay=lambda _a, _b: rng.random() / 50)
    done = cancelled = 0

    async with open_pair(network=network) as pair:

        async def work() -> None:
            nonlocal done, cancelled
            while trio.current_time() < 3:
                with trio.move_on_after(rng.choice([0.001, 0.02, 30, 30])) as scope:
                    text = "x" * rng.choice([1, 100, 70_000])
                    if rng.random() < 0.5:
                        assert await pair.call("echo", text=text) == text
                    else:
                        assert await pair.call("slow", seconds=0.01) == 0.01
                    done += 1
                cancelled += scope.cancelled_caught

        connection = pair.a.connections[0]
        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(work)
        await trio.sleep(1)
        await nothing_left(pair)
        assert pair.a.connections[0] is connection
        assert done > 100
        assert cancelled > 100


JUNK = [
    b"\xc1\xc1\xc1",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x91" * 100_000,
    b"\x94\x04\x01\xa1m\xc6\x7f\xff\xff\xff" + bytes(MAX_FRAME * 2),
    encode(Frame(Kind.CALL, 1, "echo", b"\x80")),
    encode(Frame(Kind.RESULT, 77)),
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("greeted", [True, False])
async def test_a_hostile_caller_ends_its_own_session_and_no_other(junk: bytes, greeted: bool) -> None:
    async with open_pair() as pair:
        stream = await pair.a.open_stream("b", PROTOCOL)
        if greeted:
            await stream.send_all(encode(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(Hello()))))
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(junk)
            while await stream.receive_some():
                pass
        await settle()
        assert pair.server.in_flight == 0


async def test_a_caller_that_never_reads_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        stream = await pair.a.open_stream("b", PROTOCOL)
        await stream.send_all(encode(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(Hello()))))
        body = msgspec.msgpack.encode(request({"size": 200_000}, timeout=60.0))
        with contextlib.suppress(trio.BrokenResourceError):
            for number in range(1, 10_000):
                await stream.send_all(encode(Frame(Kind.CALL, number, "large", body)))
        assert trio.current_time() < 60
        await settle()
        assert pair.server.in_flight == 0


async def test_a_hostile_owner_is_peer_misbehaved() -> None:
    async with open_pair() as pair:

        async def lie(stream: Stream) -> None:
            hello = encode(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(Hello())))
            await stream.send_all(hello)
            await stream.receive_some()
            while await stream.receive_some():
                await stream.send_all(encode(Frame(Kind.RESULT, 1, "", msgspec.msgpack.encode({"no": "text"}))))

        pair.b.serve(PROTOCOL, lie)
        async with open_peer_session(pair.a, "b", Hello(), 15) as pair.session:
            with pytest.raises(PeerMisbehaved, match="answer to echo is not understood"):
                await pair.call("echo", text="x")
            with pytest.raises(PeerMisbehaved):
                await pair.call("echo", text="x")


async def test_a_peer_that_detaches_a_call_which_waits_for_its_result_is_hung_up_on() -> None:
    """The operation was raised where a list was awaited, and ended the agent."""
    async with open_pair() as pair:
        serving = pair.server._sessions["a"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "_dispatch", partial(detach, serving))
            with pytest.raises(PeerMisbehaved, match="detached"):
                await pair.call("pieces", count=1, size=1)
        await settle()
        assert pair.session is not None
        assert pair.session.over.is_set()


async def detach(serving: Any, number: int, _method: str) -> None:
    serving._session.detach(number, operation("cog"))
