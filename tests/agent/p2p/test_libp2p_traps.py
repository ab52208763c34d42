"""Each trap of py-libp2p that concerns the host, sprung: what kills or blocks the stock one is nothing to ours."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio

from tests.stopwatch import Stopwatch, within
from twinshare.agent.p2p.addresses import parse
from twinshare.agent.p2p.contract_hosts import ECHO
from twinshare.agent.p2p.host import Stream
from twinshare.agent.p2p.libp2p.handshake import NOISE, UpgradeFailed
from twinshare.agent.p2p.libp2p.listener import CannotListen
from twinshare.agent.p2p.libp2p.multistream import MULTISTREAM, NegotiationFailed, NotSpoken, encode, select
from twinshare.agent.p2p.libp2p.noise import SecureChannel
from twinshare.agent.p2p.libp2p.pipe import PipeBroken
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.p2p.libp2p.yamux.frame import DATA, SYN, WINDOW
from twinshare.agent.p2p.libp2p.yamux.frame import encode as frame
from twinshare.protocols.errors import PeerUnreachable

from .hosts import open_echo, open_files, open_hosts, peer_process, raw_channel, raw_muxed, raw_pipe, talks, until

# -- security


@pytest.mark.parametrize("offer", ["/plaintext/2.0.0", "/tls/1.0.0", "/secio/1.0.0"])
async def test_nothing_but_noise_is_offered(offer: str) -> None:
    async with open_echo() as host, raw_pipe(host) as pipe:
        with pytest.raises(NotSpoken):
            await select(pipe.receive, pipe.send, offer)


@pytest.mark.parametrize("offer", ["/mplex/6.7.0", "/yamux/0.9.0"])
async def test_nothing_but_yamux_is_offered(offer: str) -> None:
    async with open_echo() as host, raw_channel(host) as channel:
        with pytest.raises(NotSpoken):
            await select(channel.receive, channel.send, offer)


async def test_a_token_that_is_no_text_does_not_end_the_host() -> None:
    async with open_hosts(2) as (host, peer), raw_muxed(host) as channel:
        bad = encode(MULTISTREAM) + b"\x05\xff\xfe\xff\xfe\n"
        await channel.send(frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, len(bad)) + bad)
        answers = b""
        while encode("na") not in answers:
            answers += await channel.receive()
        await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)


@pytest.mark.expects_errors
async def test_a_handler_that_raises_resets_its_stream_and_no_more() -> None:
    # They read first: a reset drops what is under way, and at once that may be the answer that names the protocol.
    async def bug(stream: Stream) -> None:
        await stream.receive_some()
        raise ZeroDivisionError(stream)

    async def bugs(stream: Stream) -> None:
        await stream.receive_some()
        raise ExceptionGroup("two", [KeyError("one"), ValueError("two")])

    async with open_hosts(2) as (host, peer):
        host.serve("/bug", bug)
        host.serve("/bugs", bugs)
        await peer.connect(host.peer_id, host.addresses)
        for protocol in ("/bug", "/bugs"):
            stream = await peer.open_stream(host.peer_id, protocol)
            await stream.send_all(b"go on")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await talks(peer, host.peer_id)


async def flood(channel: SecureChannel) -> None:
    """Send to a handler that does not read, as if there were no window."""
    hello = encode(MULTISTREAM) + encode("/stuck")
    await channel.send(frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, len(hello)) + hello)
    for _ in range(1000):
        await channel.send(frame(DATA, 0, 1, 50_000) + bytes(50_000))


async def test_a_sender_past_the_window_is_cut_off() -> None:
    async def stuck(_: Stream) -> None:
        await trio.sleep_forever()

    async with open_echo() as host, raw_muxed(host) as channel:
        host.serve("/stuck", stuck)
        with pytest.raises(PipeBroken):
            await flood(channel)
        await until(lambda: not host.connections)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_random_bytes_leave_the_host_as_it_was(when: str) -> None:
    settings = HostSettings(upgrade_deadline=0.2)
    async with open_hosts(2, settings=settings) as (host, peer):
        for size in (1, 100, 3_000, 100_000):
            with suppress(PipeBroken, NegotiationFailed, UpgradeFailed), trio.move_on_after(0.3):
                if when == "before":
                    async with raw_pipe(host) as pipe:
                        await pipe.send(encode(MULTISTREAM) + encode(NOISE) + os.urandom(size))
                        while await pipe.receive():
                            pass
                else:
                    async with raw_muxed(host) as channel:
                        await channel.send(os.urandom(size))
                        while await channel.receive():
                            pass
        with trio.fail_after(60):
            while not peer.connections:  # a handshake may take longer than that deadline on a busy machine
                with suppress(PeerUnreachable):
                    await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)
        await until(lambda: len(host.connections) == 1)
        await until(lambda: host.half_open == 0)


async def test_a_thousand_half_open_sockets_do_not_lock_a_peer_out() -> None:
    async with open_hosts(2) as (host, peer):
        address = parse(host.addresses[0])
        held = []
        for _ in range(1000):
            sock = socket.socket()
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect((address.host, address.port))
            held.append(sock)
        with within(2.0):
            await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)
        assert host.half_open <= HostSettings().half_open_each
        for sock in held:
            sock.close()
        await until(lambda: host.half_open == 0)


async def test_half_open_sockets_are_closed_in_time() -> None:
    async with open_echo(settings=HostSettings(upgrade_deadline=0.2)) as host, raw_pipe(host) as pipe:
        await pipe.send(encode(MULTISTREAM))
        with within(2):
            while await pipe.receive():
                pass
        await until(lambda: host.half_open == 0)


async def test_no_slot_is_lost_over_many_connections() -> None:
    """Stock: each connection takes a slot for ever, and after as many as are allowed all are refused."""
    async with open_hosts(2, settings=HostSettings(connections=10)) as (host, peer):
        await peer.connect(host.peer_id, host.addresses)
        before = open_files()
        for _ in range(100):
            await peer.disconnect(host.peer_id)
            await peer.connect(host.peer_id, host.addresses)
            await talks(peer, host.peer_id)
        await until(lambda: len(host.connections) == 1)
        await until(lambda: open_files() <= before)


async def test_one_peer_cannot_pile_up_connections() -> None:
    seed = os.urandom(32)
    async with open_echo() as host, AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(raw_muxed(host, seed))
        await until(lambda: len(host.connections) == HostSettings().connections_each)
        assert len({each.peer_id for each in host.connections}) == 1


async def test_connections_are_bounded() -> None:
    async with open_hosts(4, settings=HostSettings(connections=2)) as (host, *peers):
        for peer in peers[:2]:
            await peer.connect(host.peer_id, host.addresses)
            await talks(peer, host.peer_id)
        await peers[2].connect(host.peer_id, host.addresses)
        await until(lambda: not peers[2].connections)
        await talks(peers[0], host.peer_id)


# -- behaviour


async def test_a_dead_address_costs_nothing() -> None:
    async with open_hosts(2) as (host, peer):
        await peer.connect(host.peer_id, ["/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/tcp/10", *host.addresses])
        with within(0.25):
            await peer.disconnect(host.peer_id)
            await peer.connect(host.peer_id, ["/ip4/127.0.0.1/tcp/9", *host.addresses])


@asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """Takes connections and says nothing."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        sock.listen(100)
        yield f"/ip4/127.0.0.1/tcp/{sock.getsockname()[1]}"


async def test_a_silent_port_is_given_up_in_time_and_does_not_hold_the_others() -> None:
    async with open_hosts(2) as (host, peer), silent_port() as silent:
        with within(1.0), pytest.raises(PeerUnreachable, match=r"did not answer within 0\.3 s"):
            await peer.connect(host.peer_id, [silent], deadline=0.3)
        with within(2.0):
            await peer.connect(host.peer_id, [silent, *host.addresses], deadline=60.0)


async def test_a_peer_that_comes_back_on_another_port_is_reached_at_once() -> None:
    seed = os.urandom(32)
    async with open_echo() as peer:
        async with open_echo(seed=seed) as host:
            gone = host.addresses
            await peer.connect(host.peer_id, gone)
        await until(lambda: not peer.connections)
        with pytest.raises(PeerUnreachable, match="Connection refused"):
            await peer.connect(host.peer_id, gone)
        async with open_echo(seed=seed) as again:
            await peer.connect(again.peer_id, again.addresses, deadline=1.0)
            await talks(peer, again.peer_id)


async def test_two_dials_at_once_make_one_connection() -> None:
    async with open_hosts(2) as (host, peer):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(peer.connect, host.peer_id, host.addresses)
        assert len(peer.connections) == 1


async def test_a_cancelled_dial_leaves_nothing() -> None:
    async with open_hosts(2) as (host, peer):
        before = open_files()
        for rounds in range(60):
            with trio.move_on_after(rounds / 10_000):
                await peer.connect(host.peer_id, host.addresses)
            await peer.disconnect(host.peer_id)
        await until(lambda: not host.connections and host.half_open == 0)
        await until(lambda: open_files() <= before)
        await peer.connect(host.peer_id, host.addresses)
        await talks(peer, host.peer_id)


async def test_leaving_closes_every_socket_and_frees_the_port() -> None:
    before = open_files()
    async with open_hosts(2) as (host, peer):
        address = parse(host.addresses[0])
        await peer.connect(host.peer_id, host.addresses)
        async with raw_pipe(host):
            await until(lambda: host.half_open == 1)
    assert open_files() <= before
    async with open_echo(listen=f"/ip4/127.0.0.1/tcp/{address.port}") as again:
        assert parse(again.addresses[0]).port == address.port


async def test_leaving_is_quick_when_a_peer_does_not_read() -> None:
    async with AsyncExitStack() as stack:
        async with open_echo() as host:
            await stack.enter_async_context(raw_muxed(host))
            stopwatch = Stopwatch()
        assert stopwatch.seconds < 2.0


async def test_what_arrives_while_a_host_closes_is_refused() -> None:
    async with open_hosts(2) as (host, peer):
        await host.swarm.aclose()
        with suppress(PeerUnreachable):
            await peer.connect(host.peer_id, host.addresses, deadline=1.0)
        await until(lambda: not peer.connections)
        assert not host.connections


async def test_a_busy_port_is_an_error_that_says_so() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(CannotListen, match=f"tcp/{port}: another program uses the port"):
            async with open_echo(listen=f"/ip4/127.0.0.1/tcp/{port}"):
                pass


async def test_two_agents_never_share_a_port() -> None:
    async with open_echo() as host:
        port = parse(host.addresses[0]).port
        for address in (f"/ip4/127.0.0.1/tcp/{port}", f"/ip4/0.0.0.0/tcp/{port}"):
            with pytest.raises(CannotListen):
                async with open_echo(listen=address):
                    pass


async def test_the_error_of_the_body_stays_as_it_was() -> None:
    with pytest.raises(PeerUnreachable):
        async with open_echo() as host:
            await host.ping("12D3KooWnobody")


async def test_unspecified_addresses_are_expanded() -> None:
    async with open_echo(listen="/ip4/0.0.0.0/tcp/0") as host, open_echo() as peer:
        assert host.addresses
        assert not any(parse(address).unspecified for address in host.addresses)
        await peer.connect(host.peer_id, host.addresses)


async def test_a_reader_that_stops_does_not_break_its_writer() -> None:
    """Stock: a writer dies 5 s after its reader stalls."""
    async with open_hosts(2) as (host, peer):
        go, total = trio.Event(), 8_000_000

        async def slow(stream: Stream) -> None:
            await go.wait()
            got = 0
            while got < total:
                got += len(await stream.receive_some())
            await stream.send_all(b"all")

        host.serve("/slow", slow)
        await peer.connect(host.peer_id, host.addresses)
        stream = await peer.open_stream(host.peer_id, "/slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(total))
            await trio.sleep(0.3)
            await talks(peer, host.peer_id)
            go.set()
            assert await stream.receive_some() == b"all"


async def test_nothing_dials_of_its_own_accord() -> None:
    async with open_hosts(2) as (host, peer):
        await peer.connect(host.peer_id, host.addresses)
        await host.disconnect(peer.peer_id)
        await until(lambda: not peer.connections)
        await trio.sleep(0.5)
        assert not host.connections
        assert not peer.connections


@pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_process_that_stops_or_dies_is_noticed(sign: signal.Signals) -> None:
    async with open_echo(settings=HostSettings(peer_timeout=1.0)) as host, peer_process() as peer:
        await host.connect(peer.peer_id, peer.addresses)
        await talks(host, peer.peer_id)
        stream = await host.open_stream(peer.peer_id, ECHO)
        stopwatch = Stopwatch()
        peer.process.send_signal(sign)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert stopwatch.seconds <= 1.2
        await until(lambda: not host.connections)


async def test_libp2p_is_loaded_without_what_we_do_not_use() -> None:
    async with peer_process() as peer:
        assert peer.said["loaded"] == []
        assert peer.said["megabytes"] < 75
