"""Real hosts on loopback, and far sides that do not behave."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path as FilePath
from typing import Any

import trio

from tests.interop.peers import Peer, open_peer
from twinshare.agent.p2p.addresses import parse
from twinshare.agent.p2p.contract_hosts import ECHO, admit_all, echo
from twinshare.agent.p2p.host import Gate
from twinshare.agent.p2p.libp2p import open_libp2p_host
from twinshare.agent.p2p.libp2p.handshake import NOISE, NoiseIdentity, shake_hands
from twinshare.agent.p2p.libp2p.host import LibP2pHost
from twinshare.agent.p2p.libp2p.multistream import select
from twinshare.agent.p2p.libp2p.noise import SecureChannel
from twinshare.agent.p2p.libp2p.pipe import SocketPipe
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.libp2p.upgrade import YAMUX

from .talking import talks as talks

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def open_echo(
    *, gate: Gate = admit_all, settings: HostSettings | None = None, seed: bytes | None = None, listen: str = LOOPBACK
) -> AsyncIterator[LibP2pHost]:
    async with open_libp2p_host(seed or os.urandom(32), [listen], gate=gate, settings=settings) as host:
        host.serve(ECHO, echo)
        yield host


@asynccontextmanager
async def open_hosts(number: int, *, settings: HostSettings | None = None) -> AsyncIterator[Sequence[LibP2pHost]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_echo(settings=settings)) for _ in range(number)]


async def until(what: object, seconds: float = 60.0) -> None:
    """Wait for a condition."""
    assert callable(what)
    with trio.fail_after(seconds):
        while not what():
            await trio.sleep(0.01)


@asynccontextmanager
async def raw_pipe(host: LibP2pHost) -> AsyncIterator[SocketPipe]:
    """A socket to the host on which nothing was said."""
    address = parse(host.addresses[0])
    with trio.socket.socket() as sock:
        await sock.connect((address.host, address.port))
        yield SocketPipe(sock, 5.0)


@asynccontextmanager
async def raw_channel(host: LibP2pHost, seed: bytes | None = None) -> AsyncIterator[SecureChannel]:
    """A proven connection that has no muxer yet."""
    async with raw_pipe(host) as pipe:
        held = await select(pipe.receive, pipe.send, NOISE)
        identity = NoiseIdentity.from_seed(seed or os.urandom(32))
        _, channel, _ = await shake_hands(pipe, identity, host.peer_id, client=True, held=held)
        yield channel


@asynccontextmanager
async def raw_muxed(host: LibP2pHost, seed: bytes | None = None) -> AsyncIterator[SecureChannel]:
    """A connection that the host takes for a whole one; what is said on it is up to the test."""
    async with raw_channel(host, seed) as channel:
        channel.put_back(await select(channel.receive, channel.send, YAMUX))
        await until(lambda: len(host.connections) > 0)
        yield channel


@asynccontextmanager
async def peer_process(*before: str, **arguments: Any) -> AsyncIterator[Peer]:
    """A host in a process of its own, killed at the end; `before` is what runs it, for instance in a namespace."""
    command = [*before, sys.executable, "-m", "tests.agent.p2p.peer_process", json.dumps(arguments)]
    async with open_peer(command, FilePath(__file__).parents[3]) as peer:
        yield peer


def open_files() -> int:
    return len(list(FilePath("/proc/self/fd").iterdir()))
