"""Bytes to one far side, below encryption: a TCP socket, or a stream through a relay.

A write that moves nothing for `write_timeout` seconds breaks the pipe: a peer that stops reading holds no writer.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

import trio

from .pacing import UNBOUNDED, BulkPacer, BulkRoom, read_path

_SMALLEST_READ: Final = 16 * 1024
_LARGEST_READ: Final = 7 * 65537
"""Bytes, of whole noise messages where they are large."""
_UNSENT: Final = 256 * 1024
"""Bytes that may wait in the kernel. The rest waits with us, so that a small frame does not queue behind megabytes."""


class PipeBroken(Exception):
    """The far side is gone or does not move; the message says which."""


class Pipe(Protocol):
    async def receive(self) -> bytes:
        """What has arrived; empty at the end. Raises: PipeBroken."""
        ...

    async def send(self, data: bytes | bytearray) -> None:
        """Write all of it. When it is cancelled a part may have been written: close the pipe. Raises: PipeBroken."""
        ...

    def bulk_room(self) -> BulkRoom:
        """How much bulk may be sent now, so that what follows it is not late."""
        ...

    def close(self) -> None:
        """At once; a task that waits in the pipe gets PipeBroken."""
        ...


class SocketPipe:
    """A connected TCP socket, which is closed when no pipe can be made of it. `write_timeout` is in seconds."""

    def __init__(self, sock: trio.socket.SocketType, write_timeout: float) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        except OSError:
            sock.close()
            raise
        self._socket = sock
        self._write_timeout = write_timeout
        # A buffer of the largest size for each small read would cost more than the read.
        self._size = _SMALLEST_READ
        self._pacer = BulkPacer()

    async def receive(self) -> bytes:
        try:
            data = await self._socket.recv(self._size)
        except (OSError, trio.ClosedResourceError) as error:
            raise PipeBroken(f"the connection broke: {error}") from error
        if len(data) == self._size:
            self._size = min(self._size * 2, _LARGEST_READ)
        elif len(data) < self._size // 4:
            self._size = max(self._size // 2, _SMALLEST_READ)
        return data

    async def send(self, data: bytes | bytearray) -> None:
        try:
            with memoryview(data) as view:
                at = 0
                while at < len(view):
                    with trio.move_on_after(self._write_timeout) as waiting:
                        at += await self._socket.send(view[at:])
                    if waiting.cancelled_caught:
                        raise PipeBroken(f"the peer took nothing for {self._write_timeout:g} s")
        except (OSError, trio.ClosedResourceError) as error:
            raise PipeBroken(f"the connection broke: {error}") from error

    def bulk_room(self) -> BulkRoom:
        try:
            path = read_path(self._socket)
        except OSError:  # it is over: the write says so
            path = None
        return BulkRoom(UNBOUNDED) if path is None else self._pacer.room(path, trio.current_time())

    def detach(self) -> socket.socket:
        """Give the socket away, for blocking use; the pipe is over."""
        sock = socket.socket(fileno=self._socket.detach())
        sock.setblocking(True)
        return sock

    def close(self) -> None:
        self._socket.close()
