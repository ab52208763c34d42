"""Two ends of one connection without a socket, for the tests of this room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from twinshare.agent.p2p.libp2p.pacing import UNBOUNDED, BulkRoom
from twinshare.agent.p2p.libp2p.pipe import PipeBroken
from twinshare.agent.p2p.libp2p.yamux.connection import YamuxConnection
from twinshare.agent.p2p.libp2p.yamux.session import SessionLimits
from twinshare.agent.p2p.libp2p.yamux.stream import YamuxStream


@dataclass(eq=False)
class MemoryChannel:
    """A channel over trio's memory streams; `hold` stops the writer as a full socket does.

    `room` is what it has for bulk, and `asked` counts how often it was asked for that.
    """

    stream: trio.StapledStream[MemorySendStream, MemoryReceiveStream]
    hold: trio.Event | None = None
    room: BulkRoom = field(default_factory=lambda: BulkRoom(UNBOUNDED))
    asked: int = 0

    async def receive(self) -> bytes:
        try:
            return bytes(await self.stream.receive_some())
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PipeBroken("the pipe is closed") from error

    async def send(self, data: bytes | bytearray) -> None:
        if self.hold is not None:
            await self.hold.wait()
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PipeBroken("the pipe is closed") from error

    def bulk_room(self) -> BulkRoom:
        self.asked += 1
        return self.room

    def close(self) -> None:
        self.stream.send_stream.close()
        self.stream.receive_stream.close()


def memory_channels() -> tuple[MemoryChannel, MemoryChannel]:
    one, other = memory_stream_pair()
    return MemoryChannel(one), MemoryChannel(other)


@dataclass(eq=False)
class ConnectionPair:
    near: YamuxConnection
    far: YamuxConnection
    near_channel: MemoryChannel
    far_channel: MemoryChannel
    accepted: trio.MemoryReceiveChannel[YamuxStream]

    async def streams(self) -> tuple[YamuxStream, YamuxStream]:
        """A new stream and its other end."""
        stream = self.near.open_stream()
        return stream, await self.accepted.receive()


@asynccontextmanager
async def open_pair(
    *, peer_timeout: float = 60.0, limits: SessionLimits | None = None
) -> AsyncIterator[ConnectionPair]:
    channels = memory_channels()
    near = YamuxConnection(channels[0], peer_id="far", client=True, peer_timeout=peer_timeout, limits=limits)
    far = YamuxConnection(channels[1], peer_id="near", client=False, peer_timeout=peer_timeout, limits=limits)
    send, receive = trio.open_memory_channel[YamuxStream](1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.run, lambda _: None)
        nursery.start_soon(far.run, send.send_nowait)
        yield ConnectionPair(near, far, channels[0], channels[1], receive)
        await near.aclose()
        await far.aclose()
