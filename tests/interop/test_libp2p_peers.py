"""js-libp2p and go-libp2p as judges of our wire: each side dials the other, identifies, pings and echoes."""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from tests.agent.p2p.hosts import open_echo, open_hosts, talks, until
from tests.agent.p2p.workshop import Neighbourhood, Workshop, WorkshopService
from twinshare.agent.p2p.contract_hosts import ECHO
from twinshare.agent.p2p.host import PathKind as Route
from twinshare.agent.p2p.libp2p.dht import open_dht
from twinshare.agent.p2p.libp2p.host import LibP2pHost
from twinshare.agent.p2p.libp2p.identify import IDENTIFY, PING, ask_identity
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.peer_session import PROTOCOL, open_peer_session
from twinshare.agent.p2p.rpc import PeerServer
from twinshare.agent.simulation import MemoryEvents
from twinshare.protocols.frames import Frame, FrameReader, Kind, encode
from twinshare.protocols.messages import VERSIONS, Hello
from twinshare.protocols.table import Dispatcher

from .peers import Peer, go_folder, js_folder, open_peer

pytestmark = pytest.mark.system

SIZES = (1, 70_000, 3_000_000)


@pytest.fixture(scope="module", params=["js", "go"])
def command(request: pytest.FixtureRequest) -> tuple[list[str], Path]:
    """What starts a peer, and where."""
    return (["node", "peer.mjs"], js_folder()) if request.param == "js" else (["./peer"], go_folder())


@asynccontextmanager
async def both(command: tuple[list[str], Path]) -> AsyncIterator[tuple[LibP2pHost, Peer]]:
    async with open_peer(*command) as peer, open_echo() as host:
        yield host, peer


async def test_it_dials_us(command: tuple[list[str], Path]) -> None:
    async with both(command) as (host, peer):
        address = host.addresses[0]
        assert await peer.call("dial", address=address) == host.peer_id
        assert await peer.call("ping", address=address) >= 0
        for size in SIZES:
            assert await peer.call("echo", address=address, size=size) == size
        known = await peer.call("identified", peer=host.peer_id)
        assert {ECHO, IDENTIFY, PING} <= set(known["protocols"])
        assert known["agent"] == "twinshare"
        assert [each.peer_id for each in host.connections] == [peer.peer_id]
        await peer.call("hangUp", peer=host.peer_id)
        await until(lambda: not host.connections)


async def test_we_dial_it(command: tuple[list[str], Path]) -> None:
    async with both(command) as (host, peer):
        await host.connect(peer.peer_id, peer.addresses)
        assert await host.ping(peer.peer_id) < 1
        identity = await ask_identity(host.swarm, host.swarm.connected(peer.peer_id), deadline=5)
        assert identity is not None
        assert {ECHO, IDENTIFY, PING} <= set(identity.protocols)
        assert identity.observed is not None
        assert identity.observed.loopback
        stream = await host.open_stream(peer.peer_id, PING)
        block = os.urandom(32)
        await stream.send_all(block)
        assert await stream.receive_some() == block
        stream.reset()
        for size in SIZES:
            await echo(host, peer, os.urandom(size))
        await host.disconnect(peer.peer_id)
        with trio.fail_after(60):
            while await peer.call("connections"):
                await trio.sleep(0.05)


async def echo(host: LibP2pHost, peer: Peer, data: bytes) -> None:
    stream = await host.open_stream(peer.peer_id, ECHO)
    got = bytearray()

    async def send() -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await stream.receive_some():
            got += piece
    await stream.aclose()
    assert got == data


@pytest.fixture
def js() -> Path:
    return js_folder()


async def test_js_is_reached_through_our_relay(js: Path) -> None:
    relaying = HostSettings(relay=True)
    async with open_hosts(2, settings=relaying) as (relay, host), open_peer(["node", "peer.mjs"], js) as peer:
        await peer.call("dial", address=relay.addresses[0])
        with trio.fail_after(60):
            known: list[str] = []
            while not known:
                known = await peer.call("listen", address=f"{relay.addresses[0]}/p2p-circuit")
                known = [address for address in known if "p2p-circuit" in address]
                await trio.sleep(0.1)
        made = await host.connect(peer.peer_id, known)
        assert made.path is Route.RELAYED
        await echo(host, peer, os.urandom(200_000))


async def test_we_are_reached_through_js_as_a_relay(js: Path) -> None:
    relaying = HostSettings(relay=True)
    command = ["node", "peer.mjs", "--relay"]
    async with open_hosts(2, settings=relaying) as (inside, outside), open_peer(command, js) as relay:
        await inside.connect(relay.peer_id, relay.addresses)
        assert inside.relaying is not None
        with trio.fail_after(60):
            while not await inside.relaying.reservations.reserve(relay.peer_id):
                await trio.sleep(0.2)
        [known] = [address for address in inside.addresses if "p2p-circuit" in address]
        made = await outside.connect(inside.peer_id, [known])
        assert made.path is Route.RELAYED
        await talks(outside, inside.peer_id, os.urandom(50_000))


async def test_js_says_hello_to_our_calls_and_answers_ours(js: Path) -> None:
    """It knows nothing of our frames but the bytes of one: enough to see that they pass whole, both ways."""
    theirs = encode(Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(Hello(name="js"))))
    server = PeerServer(Dispatcher({WorkshopService: Workshop().bind}), Neighbourhood(), MemoryEvents().subscribe, 15)
    async with open_peer(["node", "peer.mjs"], js) as peer, open_echo() as host:
        host.serve(PROTOCOL, server.serve)
        data = b64encode(theirs).decode()
        answer = await peer.call("say", address=host.addresses[0], protocol=PROTOCOL, data=data)
        [frame] = FrameReader().feed(b64decode(answer))
        assert (frame.kind, msgspec.msgpack.decode(frame.body, type=Hello).name) == (Kind.HELLO, "b")
        agreed = Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(Hello(name="js", versions=VERSIONS[:1])))
        await peer.call("serve", protocol=PROTOCOL, data=b64encode(encode(agreed)).decode())
        async with open_peer_session(host, peer.peer_id, Hello(name="us"), 15) as line:
            assert line.greeting.name == "js"


async def test_js_and_we_share_a_table(js: Path) -> None:
    """Each puts what the other gets, and finds a third that only the other knows."""
    async with (
        open_peer(["node", "peer.mjs"], js) as peer,
        open_hosts(2) as (host, third),
        open_dht(host, lambda _key, _value: 1) as dht,
        open_dht(third, lambda _key, _value: 1),
    ):
        await third.connect(host.peer_id, host.addresses)
        await peer.call("dial", address=host.addresses[0])
        await until(lambda: dht.size == 2)
        await peer.call("dhtPut", key="/twinshare/from-js", value=b64encode(b"js").decode())
        assert await dht.get(b"/twinshare/from-js") == b"js"
        assert await dht.put(b"/twinshare/from-us", b"us") == 2
        assert b64decode(await peer.call("dhtGet", key="/twinshare/from-us")) == b"us"
        assert third.addresses[0].rpartition("/p2p/")[0] in await peer.call("dhtFind", peer=third.peer_id)
        assert any(address.startswith("/ip4/127.0.0.1/tcp/") for address in await dht.find_peer(peer.peer_id))


async def test_many_streams_at_once(command: tuple[list[str], Path]) -> None:
    async with both(command) as (host, peer):
        await host.connect(peer.peer_id, peer.addresses)
        async with trio.open_nursery() as nursery:
            for size in range(40):
                nursery.start_soon(echo, host, peer, os.urandom(1 + size * 5_000))


async def test_cancelled_streams_do_not_disturb_the_others(command: tuple[list[str], Path]) -> None:
    async with both(command) as (host, peer):
        await host.connect(peer.peer_id, peer.addresses)
        for rounds in range(30):
            with trio.move_on_after(rounds / 2_000):
                await echo(host, peer, os.urandom(500_000))
        await echo(host, peer, os.urandom(100_000))
        assert len(host.connections) == 1
