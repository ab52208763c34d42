"""The serial console of a VM as an asynchronous stream of bytes, under asyncio and under trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import anyio
import httpcore
import httpx

from ..protocols.console import SILENCE
from .connection import Connection
from .exchange import NodeUnreachable, below
from .websocket import ClientSocket

_READ = 1 << 16
_LAST_WORD = 1.0


class Console:
    """`async for data in console` gives what the guest says until the VM stops; `end` is then the node's sentence.

    Raises, from every method: what the node raises, Overloaded when this client reads too slowly, PeerUnreachable when
    the peer is lost, NodeUnreachable when the node is.
    """

    def __init__(self, stream: Any, socket: ClientSocket) -> None:
        self._stream, self._socket = stream, socket
        self._writing = anyio.Lock()

    @property
    def end(self) -> str | None:
        return self._socket.end

    async def receive(self) -> bytes:
        """What the guest says next; b"" once the VM has stopped."""
        while self._socket.end is None:
            if self._socket.error is not None:
                raise self._socket.error
            try:
                data = await self._stream.read(_READ, SILENCE)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                data = b""
            said = self._socket.feed(data)
            with suppress(NodeUnreachable):
                await self._write(self._socket.replies())
            if said:
                return said
        return b""

    async def send(self, data: bytes) -> None:
        """Type. It waits while the guest does not read."""
        await self._write(self._socket.messages(data))

    def __aiter__(self) -> Console:
        return self

    async def __anext__(self) -> bytes:
        said = await self.receive()
        if not said:
            raise StopAsyncIteration
        return said

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        async with self._writing:
            try:
                await self._stream.write(data)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                if self._socket.end is None:
                    raise NodeUnreachable(f"the connection with the node was lost: {error}") from None

    async def aclose(self) -> None:
        """Leave; the VM goes on."""
        with suppress(NodeUnreachable):
            with anyio.move_on_after(_LAST_WORD, shield=True):
                await self._write(self._socket.close())


@asynccontextmanager
async def open_console(connection: Connection, vm: str, peer: str | None) -> AsyncIterator[Console]:
    """The console until the block is left. Raises: what the node raises; NodeUnreachable."""
    socket = ClientSocket()
    answer: httpx.Response = await connection.stream(
        below(f"/vm/{quote(vm, safe='')}/console", peer), socket.headers, SILENCE
    )
    try:
        socket.check(answer.status_code, answer.headers.get("sec-websocket-accept", ""))
        console = Console(answer.extensions["network_stream"], socket)
        try:
            yield console
        finally:
            await console.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()
