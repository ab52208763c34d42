"""Where a host listens: all kinds of addresses that the machine has, and no more."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from twinshare.agent.p2p.addresses import Address, parse
from twinshare.agent.p2p.libp2p import listener
from twinshare.agent.p2p.libp2p.listener import CannotListen, Listeners
from twinshare.agent.p2p.libp2p.pipe import SocketPipe
from twinshare.agent.p2p.libp2p.settings import HostSettings
from twinshare.agent.sockets import network_of

BOTH = [parse("/ip4/0.0.0.0/tcp/0"), parse("/ip6/::/tcp/0")]


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without IPv6."""
    make = listener.make_socket

    def refuse(address: Address) -> trio.socket.SocketType:
        if address.kind == "ip6":
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return make(address)

    monkeypatch.setattr(listener, "make_socket", refuse)


async def test_both_kinds_may_have_one_port() -> None:
    listeners = Listeners(HostSettings())
    await listeners.bind(BOTH[:1])
    port = listeners.addresses[0].port
    other = Listeners(HostSettings())
    await other.bind([parse(f"/ip6/::/tcp/{port}")])
    listeners.close()
    other.close()


@pytest.mark.usefixtures("no_ipv6")
async def test_a_kind_that_the_machine_lacks_is_left_out() -> None:
    listeners = Listeners(HostSettings())
    await listeners.bind(BOTH)
    assert [address.kind for address in listeners.addresses] == ["ip4"]
    listeners.close()


@pytest.mark.usefixtures("no_ipv6")
async def test_one_that_was_named_is_not_left_out_nor_the_last() -> None:
    for wanted in (BOTH[1:], [*BOTH, parse("/ip6/::1/tcp/0")]):
        listeners = Listeners(HostSettings())
        with pytest.raises(CannotListen, match="Address family not supported"):
            await listeners.bind(wanted)


def test_all_addresses_of_an_ipv6_network_have_one_share() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:ffff:ffff:ffff")
    assert network_of("2001:db8::1") != network_of("2001:db8:0:1::1")
    assert network_of("fe80::1%eth0") == network_of("fe80::2")
    assert network_of("192.0.2.1") != network_of("192.0.2.2")
    assert network_of("::ffff:192.0.2.1") != network_of("::ffff:192.0.2.2")


async def test_half_open_connections_are_counted_by_network() -> None:
    """Connections of several addresses of one network, as the kernel would report them, share its bound."""
    listeners = Listeners(HostSettings(half_open_each=1))
    began = 0

    async def arrived(pipe: SocketPipe, _far: Address) -> None:
        nonlocal began
        began += 1
        try:
            await trio.sleep_forever()
        finally:
            pipe.close()

    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        async with trio.open_nursery() as nursery:
            for host in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
                stack.enter_context(socket.create_connection(server.getsockname()[:2]))
                connection = trio.socket.from_stdlib_socket(server.accept()[0])
                nursery.start_soon(listeners.take, connection, Address(kind="ip6", host=host, port=1), arrived)
            await trio.testing.wait_all_tasks_blocked()
            assert began == 3
            assert listeners.half_open == 2
            nursery.cancel_scope.cancel()
