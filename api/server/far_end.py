"""Who is at the far end of a new connection: the one look on which tokenless access rests."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

import trio

from ...agent.sockets import far_socket, is_own, is_own_program, network_of, unix_peer
from ...protocols.access import LOCAL_ADMIN
from ..rest.connection_info import ConnectionInfo, plain_address

Guests = Callable[[], Iterable[int]]


async def identify(sock: trio.socket.SocketType, guests: Guests, *, tokenless: bool, secure: bool) -> ConnectionInfo:
    """Return what is known of the connection that `sock` has accepted.

    `guests` gives the processes that carry guests' traffic; `tokenless` says whether the node's user needs no token.
    """
    if sock.family == socket.AF_UNIX:
        uid = unix_peer(sock)
        return _info("unix", "localhost", uid, trusted=tokenless and is_own(uid), secure=secure)
    client, server = _end(sock.getpeername()), _end(sock.getsockname())
    if not ipaddress.ip_address(client[0].partition("%")[0]).is_loopback:
        return _info(client[0], server[0], None, trusted=False, secure=secure)
    far = far_socket(client, server)
    if far is None:
        return _info(client[0], server[0], None, trusted=False, secure=secure)
    trusted = tokenless and await is_own_program(far, guests())
    return _info(client[0], server[0], far.uid, trusted=trusted, secure=secure)


def _end(address: tuple[str, int]) -> tuple[str, int]:
    return plain_address(address[0]), address[1]


def _info(address: str, served: str, uid: int | None, *, trusted: bool, secure: bool) -> ConnectionInfo:
    return ConnectionInfo(
        address=address,
        # Other users of this machine share its address with us: each has a share of its own.
        source=f"uid {uid}" if uid is not None else network_of(address),
        served=served,
        secure=secure,
        local=LOCAL_ADMIN if trusted else None,
    )
