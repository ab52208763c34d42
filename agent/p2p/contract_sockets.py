"""The part of the contract of the port `Host` that is about sockets beside a connection."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial

import trio

from ...protocols.errors import PeerUnreachable
from .contract_hosts import Check, OpenHost, admit_all, check_echo, connected, fails, open_hosts

TICKET, OTHER = "a" * 64, "b" * 64


async def check_an_expected_socket_joins_two_hosts(open_host: OpenHost) -> None:
    async with connected(open_host) as hosts:
        for near, far in (hosts, reversed(hosts)):
            with far.expect_socket(near.peer_id, TICKET) as expected:
                with (
                    await near.dial_socket(far.peer_id, TICKET, expected.port) as ours,
                    await expected.take() as theirs,
                ):
                    for one, other in ((ours, theirs), (theirs, ours)):
                        await trio.to_thread.run_sync(one.sendall, b"hello")
                        one.shutdown(socket.SHUT_WR)
                        assert await trio.to_thread.run_sync(partial(other.recv, 5, socket.MSG_WAITALL)) == b"hello"
                        assert await trio.to_thread.run_sync(other.recv, 1) == b""
                await fails(PeerUnreachable, near.dial_socket(far.peer_id, TICKET, expected.port))
        await check_echo(near, far.peer_id)


async def check_a_socket_that_is_not_expected_is_refused(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        with far.expect_socket(near.peer_id, TICKET) as expected:
            port = expected.port
            await fails(PeerUnreachable, near.dial_socket(far.peer_id, OTHER, port))
        await fails(PeerUnreachable, near.dial_socket(far.peer_id, TICKET, port))
        await check_echo(near, far.peer_id)


async def check_a_socket_that_nobody_takes_is_closed(open_host: OpenHost) -> None:
    async with connected(open_host) as (near, far):
        with far.expect_socket(near.peer_id, TICKET) as expected:
            sock = await near.dial_socket(far.peer_id, TICKET, expected.port)
            await trio.lowlevel.checkpoint()
        with sock:
            assert await trio.to_thread.run_sync(sock.recv, 1) == b""


async def check_sockets_are_for_connected_peers(open_host: OpenHost) -> None:
    async with open_hosts(open_host, admit_all, admit_all) as (near, far):
        try:
            with far.expect_socket(near.peer_id, TICKET):
                raise AssertionError("a socket of a peer that is not connected is expected")
        except PeerUnreachable:
            pass
        await fails(PeerUnreachable, near.dial_socket(far.peer_id, TICKET, 1))


SOCKET_CHECKS: Sequence[Check] = (
    check_an_expected_socket_joins_two_hosts,
    check_a_socket_that_is_not_expected_is_refused,
    check_a_socket_that_nobody_takes_is_closed,
    check_sockets_are_for_connected_peers,
)
