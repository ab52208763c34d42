"""What a session wants to send leaves in order, at once or by the writer; what arrives is taken where it arrives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import inf
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.session_driver import SessionDriver
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.messages import Event, Hello
from twinshare.protocols.session import CallerSession, OwnerSession, Session

from .pairs import open_pair


class Wire(Stream):
    """A stream with room now and then, whose writes take their time."""

    peer_id, protocol = "far", "/p"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sent, self.at_once, self.busy, self.space = b"", 0, False, 0

    @property
    def room(self) -> int:
        return 0 if self.busy else self.space

    def send_nowait(self, data: bytes) -> None:
        assert len(data) <= self.room
        self.at_once += 1
        self.sent += data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.busy = True
        for byte in bytes(data):
            await trio.sleep(self._rng.random() / 5)
            self.sent += bytes([byte])
        self.busy = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Nothing is held."""


class Talk:
    """As much of a session as a pump needs to send."""

    closed: TwinshareError | None = None
    next_tick = inf

    def __init__(self) -> None:
        self._out = b""

    @property
    def pending(self) -> int:
        return len(self._out)

    def say(self, text: bytes) -> None:
        self._out += text

    def data_to_send(self) -> bytes:
        out, self._out = self._out, b""
        return out

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        yield from ()

    tick = receive


async def test_nothing_overtakes_anything(autojump_clock: MockClock) -> None:
    ways: set[bool] = set()
    for seed in range(30):
        rng = random.Random(seed)
        wire, talk = Wire(rng), Talk()
        pump = SessionDriver(wire, cast("Session", talk), lambda _: None)
        said = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run)
            for _ in range(60):
                text = rng.randbytes(rng.choice([1, 3, 20]))
                wire.space = rng.choice([0, 2, 10, 100])
                talk.say(text)
                said += text
                fits, before = talk.pending <= wire.room, wire.at_once
                pump.flush()
                assert (wire.at_once > before) is fits, "at once if, and only if, there is room for all of it"
                ways.add(fits)
                await trio.sleep(rng.choice([0, 0, 0.3, 3]))
            await trio.sleep(2000)
            assert wire.sent == said, seed
            nursery.cancel_scope.cancel()
    assert ways == {True, False}


class Broken(Exception):
    """A bug of ours."""


async def test_a_bug_where_the_bytes_arrive_ends_the_pump_alone(autojump_clock: MockClock) -> None:
    def handle(event: Event) -> None:
        raise Broken

    async with open_pair() as pair:
        near, far = await pair.streams()
        pump = SessionDriver(far, OwnerSession(Hello(), trio.current_time(), 15.0), handle)
        hello = CallerSession(Hello(), 0.0).data_to_send()

        async def run() -> None:
            with pytest.raises(Broken):
                await pump.run()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            await near.send_all(hello)
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        near, far = await pair.streams()
        await near.send_all(b"the connection lives")
        assert await far.receive_some() == b"the connection lives"
