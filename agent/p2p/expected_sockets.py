"""Sockets of their own that peers are expected to open beside their connection, each with a ticket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

BULK: Final = "/twinshare/bulk/1.0.0/"
"""The protocol that is asked for on such a socket, before the ticket."""


class ExpectedSocket:
    """`port`: the TCP port at which the peer reaches us as it does now; 0 when there is none."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._arrived = trio.Event()
        self._socket: socket.socket | None = None

    async def take(self) -> socket.socket:
        """Wait for the socket, which belongs to the caller: blocking, and nothing proves who is at its far end."""
        await self._arrived.wait()
        if (sock := self._socket) is None:
            raise ValueError("the socket was taken already")
        self._socket = None
        return sock

    def give(self, sock: socket.socket) -> None:
        """The socket has arrived."""
        self._socket = sock
        self._arrived.set()

    def close(self) -> None:
        """Close a socket that nobody took."""
        if self._socket is not None:
            self._socket.close()


class ExpectedSockets:
    """Sockets that are expected, by their tickets; each ticket is good once."""

    def __init__(self) -> None:
        self._expected: dict[str, ExpectedSocket] = {}

    @contextmanager
    def expect(self, ticket: str, port: int) -> Iterator[ExpectedSocket]:
        """Take a socket with this ticket until the end of the block."""
        expected = self._expected[ticket] = ExpectedSocket(port)
        try:
            yield expected
        finally:
            self._expected.pop(ticket, None)
            expected.close()

    def claim(self, ticket: str) -> ExpectedSocket | None:
        """Return who waits for the socket of a ticket; None when nobody does, or it was named before."""
        return self._expected.pop(ticket, None)

    def knows(self, ticket: str) -> bool:
        return ticket in self._expected
