"""Writing to a node's websocket, with the answers to its pings in a task of their own: reading never waits for writing.

A node that waits until its output is read does not read meanwhile. A reader that waited until its answer to a ping is
written would then wait for the node, and the node for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import httpcore

from .exchange import NodeUnreachable

_MAX_REPLIES: Final = 16
"""Answers that wait; a node that sends more pings without reading gets no more."""


class WebsocketWriter:
    """Writes whole messages to the network stream of a connection. Made by `open_writer`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._lock = anyio.Lock()
        self._to_write, self._replies = anyio.create_memory_object_stream[bytes](_MAX_REPLIES)

    async def write(self, data: bytes) -> None:
        """Write messages, after those that are being written. Raises: NodeUnreachable."""
        if not data:
            return
        async with self._lock:
            try:
                await self._stream.write(data)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                raise NodeUnreachable(f"the connection with the node was lost: {error}", "lost") from None

    def reply(self, data: bytes) -> None:
        """Have the answer to a control message written, without waiting for it."""
        if data:
            with suppress(anyio.WouldBlock):
                self._to_write.send_nowait(data)

    async def write_replies(self) -> None:
        """Write the answers until it is cancelled or the connection is lost, which the reader finds out."""
        with self._to_write, self._replies, suppress(NodeUnreachable):
            async for data in self._replies:
                await self.write(data)


@asynccontextmanager
async def open_writer(stream: Any) -> AsyncIterator[WebsocketWriter]:
    """Yield the writer of a connection. What the body raises stays as it is, outside of any group of errors."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        writer = WebsocketWriter(stream)
        tasks.start_soon(writer.write_replies)
        try:
            yield writer
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised again below, as it is
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
