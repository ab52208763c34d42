"""Stock py-libp2p: its host and ours both ways, and its muxer against ours under drawn lists of operations."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr.multiaddr import Multiaddr

from tests.agent.p2p.hosts import open_echo, talks
from tests.agent.p2p.pairs import MemoryChannel, memory_channels
from twinshare.agent.p2p.contract_hosts import ECHO
from twinshare.agent.p2p.libp2p.yamux.connection import YamuxConnection
from twinshare.agent.p2p.libp2p.yamux.stream import YamuxStream


@asynccontextmanager
async def open_stock() -> AsyncIterator[IHost]:
    keys = create_new_key_pair()
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, noise_privkey=new_noise_keys().private_key)},
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )

    async def echo(stream: Any) -> None:
        try:
            while data := await stream.read(65536):
                await stream.write(data)
        except IOException:
            pass
        await stream.close()

    host.set_stream_handler(TProtocol(ECHO), echo)
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        try:
            yield host
        finally:
            with trio.move_on_after(5, shield=True):
                await host.close()


async def test_we_dial_the_stock_host() -> None:
    async with open_stock() as stock, open_echo() as host:
        peer_id = str(stock.get_id())
        await host.connect(peer_id, [str(address) for address in stock.get_addrs()])
        for size in (1, 70_000, 600_000):
            await talks(host, peer_id, os.urandom(size))
        assert await host.ping(peer_id) < 1


async def test_the_stock_host_dials_us() -> None:
    async with open_stock() as stock, open_echo() as host:
        await stock.connect(info_from_p2p_addr(Multiaddr(host.addresses[0])))
        for size in (1, 70_000, 600_000):
            stream = await stock.new_stream(ID.from_string(host.peer_id), [TProtocol(ECHO)])
            data, got = os.urandom(size), bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, data)
                while len(got) < size:
                    got += await stream.read(65536)
            assert got == data
            await stream.close()


class StockWire:
    """What the stock muxer reads from and writes to."""

    is_initiator = False

    def __init__(self, channel: MemoryChannel) -> None:
        self._channel = channel
        self._held = b""

    async def read(self, n: int) -> bytes:
        while len(self._held) < n:
            data = await self._channel.receive()
            if not data:
                raise IOException("the end")
            self._held += data
        data, self._held = self._held[:n], self._held[n:]
        return data

    async def write(self, data: bytes) -> None:
        await self._channel.send(data)

    async def close(self) -> None:
        self._channel.close()


async def stock_echo(stream: Any) -> None:
    try:
        while True:
            await stream.write(await stream.read())
    except MuxedStreamEOF:
        await stream.close()
    except MuxedStreamError:  # reset by us
        await stream.reset()


async def serve_stock(muxer: Yamux) -> None:
    await muxer.event_started.wait()
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(stock_echo, await muxer.accept_stream())


async def use(ours: YamuxConnection, rng: random.Random) -> None:
    """One stream with a drawn life: pieces out, pieces back, an end or a reset."""
    stream: YamuxStream = ours.open_stream()
    pieces = [rng.randbytes(rng.choice([1, 300, 70_000, 300_000])) for _ in range(rng.randrange(1, 5))]
    got = bytearray()

    async def send() -> None:
        for piece in pieces:
            await stream.send_all(piece)
        await stream.send_eof()

    if rng.random() < 0.2:
        await stream.send_all(pieces[0])
        stream.reset()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await stream.receive_some(rng.choice([1000, 65536, None])):
            got += data
    await stream.aclose()
    assert got == b"".join(pieces)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.expects_errors
async def test_the_stock_muxer_and_ours_understand_each_other(seed: int) -> None:
    rng = random.Random(seed)
    near, far = memory_channels()
    ours = YamuxConnection(near, peer_id="stock", client=True, peer_timeout=60)
    stock = Yamux(StockWire(far), ID(b"us"), is_initiator=False)  # type: ignore[arg-type]  # of its interface what it uses
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.run, lambda _: None)
            nursery.start_soon(stock.start)
            nursery.start_soon(serve_stock, stock)
            for _ in range(5):
                async with trio.open_nursery() as users:
                    for _ in range(rng.randrange(1, 8)):
                        users.start_soon(use, ours, rng)
            assert ours.reason is None
            await ours.ping()
            nursery.cancel_scope.cancel()
