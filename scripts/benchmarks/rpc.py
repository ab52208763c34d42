"""Calls and bulk between nodes against TLS and the stock muxer; images and tunnels against ssh; whole agents."""

from __future__ import annotations

import os
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from scripts.benchmarks import _agents, _slow_lines, _transfers
from scripts.benchmarks._rpc_peer import LOOPBACK, PIECE, SINK, STOCK_CALL, TlsStream, server
from scripts.benchmarks.rows import Row
from tests.agent.p2p.workshop import ADMIN, TABLE
from twinshare.agent.background import open_background
from twinshare.agent.heap import use_one_heap
from twinshare.agent.p2p.calls import PeerCalls
from twinshare.agent.p2p.contract_hosts import admit_all
from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.offload import in_place
from twinshare.agent.p2p.peer_session import PeerSession, open_peer_session
from twinshare.protocols.messages import Hello

ROUNDS = 5
SECONDS = 1.0
BULK = 128 << 20
TEXT = "x" * 100

Call = Callable[[], Awaitable[object]]


async def measure() -> list[Row]:
    """The transports alone, then what is large, then whole agents; with the heap of an agent."""
    use_one_heap()
    return [*await _transports(), *await _transfers.measure(), *await _slow_lines.measure(), *await _agents.measure()]


async def _transports() -> list[Row]:
    """Rounds alternate between the transports, so that a busy moment of the machine strikes all of them."""
    async with AsyncExitStack() as stack:
        ours, ours_bulk = await stack.enter_async_context(_ours())
        tls, tls_bulk = await stack.enter_async_context(_tls())
        stock = await stack.enter_async_context(_stock())
        calls: dict[str, list[float]] = {"ours 1": [], "ours 16": [], "tls 1": [], "tls 16": [], "stock 16": []}
        bulk: dict[str, list[float]] = {"ours": [], "tls": []}
        for _ in range(ROUNDS):
            for name, call in (("ours", ours), ("tls", tls)):
                calls[f"{name} 1"].append(await _seconds_a_call(call, 1))
                calls[f"{name} 16"].append(await _seconds_a_call(call, 16))
            calls["stock 16"].append(await _seconds_a_call(stock, 16))
            for name, send in (("ours", ours_bulk), ("tls", tls_bulk)):
                bulk[name].append(await send())
    micro = {name: statistics.median(taken) * 1e6 for name, taken in calls.items()}
    milli = {name: statistics.median(taken) / (BULK >> 20) * 1e3 for name, taken in bulk.items()}
    rates = (
        f"{1e6 / micro['ours 16']:.0f} calls/s, TLS {1e6 / micro['tls 16']:.0f}, stock {1e6 / micro['stock 16']:.0f}"
    )
    return [
        Row(name="a call, 16 in flight, to TLS", unit="us", limit=2.0, note=rates,
            value=micro["ours 16"], baseline=micro["tls 16"]),
        Row(name="a call, 16 in flight, to a stock stream", unit="us", limit=1 / 6, note="a stream per call there",
            value=micro["ours 16"], baseline=micro["stock 16"]),
        Row(name="a call, alone, to TLS", value=micro["ours 1"], unit="us", baseline=micro["tls 1"]),
        Row(name="a MiB of bulk on one stream, to TLS", unit="ms", limit=1 / 0.8,
            value=milli["ours"], baseline=milli["tls"],
            note=f"{1048.6 / milli['ours']:.0f} MB/s, TLS {1048.6 / milli['tls']:.0f} MB/s"),
    ]  # fmt: skip


async def _seconds_a_call(call: Call, in_flight: int) -> float:
    done = 0
    until = time.perf_counter() + SECONDS

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call()
            done += 1

    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(in_flight):
            nursery.start_soon(worker)
    return (time.perf_counter() - begun) / done


def _echo_on(line: PeerSession) -> Call:
    async def session_to(_peer: str) -> PeerSession:
        return line

    calls = PeerCalls(session_to)
    return lambda: calls.call(line.peer_id, TABLE["echo"], {"text": TEXT}, ADMIN)


async def _send_bulk(stream: Stream) -> float:
    """Seconds until the far side has all of it."""
    piece = os.urandom(PIECE)
    begun = time.perf_counter()
    await stream.send_all(BULK.to_bytes(8, "big"))
    for _ in range(BULK // PIECE):
        await stream.send_all(piece)
    if await stream.receive_some() != b"done":
        raise RuntimeError("the far side did not get all")
    taken = time.perf_counter() - begun
    await stream.aclose()
    return taken


@asynccontextmanager
async def _ours() -> AsyncIterator[tuple[Call, Callable[[], Awaitable[float]]]]:
    async with server("ours") as where, open_libp2p_host(os.urandom(32), [LOOPBACK], gate=admit_all) as host:
        peer_id = where["peer_id"]
        await host.connect(peer_id, where["addresses"])
        async with open_peer_session(host, peer_id, Hello(name="bench"), 60.0) as line:

            async def bulk() -> float:
                return await _send_bulk(await host.open_stream(peer_id, SINK))

            yield _echo_on(line), bulk


@asynccontextmanager
async def _tls() -> AsyncIterator[tuple[Call, Callable[[], Awaitable[float]]]]:
    async with server("tls") as where, open_background() as nursery:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        async def dial(purpose: bytes) -> TlsStream:
            tls = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", where["port"]), context)
            await tls.send_all(purpose)
            return TlsStream(tls)

        async def bulk() -> float:
            return await _send_bulk(await dial(b"b"))

        line = PeerSession(await dial(b"r"), Hello(name="bench"), 60.0, in_place)
        nursery.start_soon(line.run)
        await line.greet()
        yield _echo_on(line), bulk


@asynccontextmanager
async def _stock() -> AsyncIterator[Call]:
    from libp2p.custom_types import TProtocol
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr.multiaddr import Multiaddr

    from tests.interop.test_stock import open_stock

    async with server("stock") as where, open_stock() as host:
        info = info_from_p2p_addr(Multiaddr(where["addresses"][0]))
        await host.connect(info)

        async def call() -> None:
            stream: Any = await host.new_stream(info.peer_id, [TProtocol(STOCK_CALL)])
            await stream.write(TEXT.encode())
            await stream.read(65536)
            await stream.close()

        yield call
