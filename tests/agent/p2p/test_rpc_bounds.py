"""What calls of peers may take of a node: places, memory, and none of it from other peers."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
import trio
import trio.testing

from tests.agent.p2p.test_rpc import settle
from tests.agent.p2p.workshop import TABLE, open_pair
from twinshare.agent.p2p import peer_session
from twinshare.agent.p2p.rpc import MAX_CALLS_IN_ALL, RESERVED_CALLS
from twinshare.protocols.access import Role
from twinshare.protocols.errors import Overloaded, TooLarge
from twinshare.protocols.messages import Request
from twinshare.protocols.session import MAX_CALLS


async def test_a_call_beyond_those_in_flight_waits_for_its_turn(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS):
            nursery.start_soon(lambda: pair.call("slow", seconds=10.0))
        await settle()
        with trio.fail_after(11):
            assert await pair.call("echo", text="at last") == "at last"
        assert trio.current_time() >= 10


async def test_only_so_many_calls_wait_for_a_turn(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_session, "MAX_WAITING", 3)
    async with open_pair() as pair, trio.open_nursery() as nursery:
        for _ in range(MAX_CALLS + 3):
            nursery.start_soon(lambda: pair.call("slow", seconds=10.0))
        await settle()
        with pytest.raises(Overloaded, match="3 calls wait"):
            await pair.call("echo", text="one more")
        nursery.cancel_scope.cancel()


async def test_the_node_answers_no_more_calls_than_it_can_bear(autojump_clock: trio.testing.MockClock) -> None:
    """But for a few of each peer: others could hold all places, each with calls that wait for ten minutes."""
    async with open_pair() as pair, trio.open_nursery() as nursery:
        pair.server.in_flight = MAX_CALLS_IN_ALL
        for _ in range(RESERVED_CALLS - 1):
            nursery.start_soon(lambda: pair.call("slow", seconds=10.0))
        await settle()
        assert await pair.call("echo", text="x") == "x"
        nursery.start_soon(lambda: pair.call("slow", seconds=10.0))
        await settle()
        with pytest.raises(Overloaded):
            await pair.call("echo", text="x")
        pair.server.in_flight -= MAX_CALLS_IN_ALL
        assert await pair.call("echo", text="x") == "x"


async def test_a_call_that_lasts_keeps_nothing_of_its_frame(autojump_clock: trio.testing.MockClock) -> None:
    """A peer could have 60 calls wait for ten minutes, each with a frame of what no method knows."""
    padded = msgspec.Raw(msgspec.msgpack.encode({"seconds": 1000.0, "padding": b"x" * 200_000}))
    async with open_pair() as pair, trio.open_nursery() as nursery:
        assert pair.session is not None
        tracemalloc.start()
        try:
            for _ in range(MAX_CALLS - 4):
                nursery.start_soon(pair.session.call, "slow", Request(2000.0, Role.ADMIN, None, False, 0, padded))
            await settle()
            held = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(True, f"*/agent/p2p/{name}.py") for name in ("rpc", "offload")]
                + [tracemalloc.Filter(True, "*/protocols/frames.py")]
            )
        finally:
            tracemalloc.stop()
        assert pair.shop.busy == MAX_CALLS - 4
        assert sum(each.size for each in held.statistics("filename")) < 1 << 20
        nursery.cancel_scope.cancel()


async def test_arguments_that_are_too_large_are_refused_before_they_are_looked_at() -> None:
    async with open_pair() as pair:
        assert pair.session is not None
        serving = pair.server._sessions["a"]
        for name in ("echo", "make", "destroy"):
            packed = msgspec.Raw(msgspec.msgpack.encode({"text": bytes(TABLE[name].max_arguments)}))
            async with serving._decoder._lock:  # another one is being decoded
                with trio.fail_after(5), pytest.raises(TooLarge, match=f"{name} takes"):
                    await pair.session.call(name, Request(30.0, Role.ADMIN, None, False, 0, packed))
