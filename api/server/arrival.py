"""Who has just connected: the one look at the far end of a connection, on which tokenless access rests."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

import trio

from ...agent.sockets import far_socket, is_own, is_own_program, unix_peer
from ...protocols.access import LOCAL_ADMIN
from .link import Link, plain_address

Guests = Callable[[], Iterable[int]]


async def meet(sock: trio.socket.SocketType, guests: Guests, *, tokenless: bool, secure: bool) -> Link:
    """The link of a connection that `sock` has accepted.

    `guests` tells the processes that carry guests' traffic; `tokenless` whether this node's own user needs no token.
    """
    if sock.family == socket.AF_UNIX:
        uid = unix_peer(sock)
        return _link("unix", "localhost", uid, trusted=tokenless and is_own(uid), secure=secure)
    client, server = _end(sock.getpeername()), _end(sock.getsockname())
    if not ipaddress.ip_address(client[0].partition("%")[0]).is_loopback:
        return _link(client[0], server[0], None, trusted=False, secure=secure)
    far = far_socket(client, server)
    if far is None:
        return _link(client[0], server[0], None, trusted=False, secure=secure)
    trusted = tokenless and await is_own_program(far, guests())
    return _link(client[0], server[0], far.uid, trusted=trusted, secure=secure)


def _end(address: tuple[str, int]) -> tuple[str, int]:
    return plain_address(address[0]), address[1]


def _link(address: str, served: str, uid: int | None, *, trusted: bool, secure: bool) -> Link:
    return Link(
        address=address,
        # Other users of this machine share its address with us: each has a share of its own.
        source=f"uid {uid}" if uid is not None else address,
        served=served,
        secure=secure,
        local=LOCAL_ADMIN if trusted else None,
    )
