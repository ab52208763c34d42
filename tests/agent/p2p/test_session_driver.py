"""What a session wants to send leaves in order, whole, however long each write takes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import inf
from typing import cast

import trio
from trio.testing import MockClock

from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.session_driver import SessionDriver
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.messages import Event
from twinshare.protocols.session import Session


class Wire(Stream):
    """A stream whose writes take their time."""

    peer_id, protocol = "far", "/p"

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sent, self.writes = b"", 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1
        for byte in bytes(data):
            await trio.sleep(self._rng.random() / 5)
            self.sent += bytes([byte])

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
    for seed in range(30):
        rng = random.Random(seed)
        wire, talk = Wire(rng), Talk()
        pump = SessionDriver(wire, cast("Session", talk), lambda _: None)
        said = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump.run)
            for _ in range(60):
                text = rng.randbytes(rng.choice([1, 3, 20]))
                talk.say(text)
                said += text
                pump.flush()
                await trio.sleep(rng.choice([0, 0, 0.3, 3]))
            await trio.sleep(2000)
            assert wire.sent == said, seed
            assert wire.writes < 60, "what is said during a write goes in the next one, together"
            nursery.cancel_scope.cancel()
