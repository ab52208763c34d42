"""The events of a node as an async iterator that outlives its connection."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import httpx

from ..protocols.events import Event
from ..protocols.sse import EventReader
from .async_client import AsyncApiClient, sleep
from .exchange import NodeUnreachable
from .retry import RetryWindow

READ_TIMEOUT = 45.0
"""Seconds without a byte after which the connection is dead: the server writes a comment every 15 s."""


class EventStream:
    """`async for event in stream`: each event once, in order, across lost connections and restarts of the node.

    It starts after the event `after` (None: with what happens from now on) and resumes by Last-Event-ID.
    A node that does not have all events since says so by the event `reset` and goes on: ask it for everything again.
    Use it as a context manager, or call `aclose`, to close the connection at once.

    Raises: NodeUnreachable when the node stays away, and whatever the node raises.
    """

    def __init__(self, client: AsyncApiClient, target: str, after: int | None) -> None:
        self._client = client
        self._target = target
        self._last = after
        self._ready: deque[Event] = deque()
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._reader = EventReader()

    async def __aenter__(self) -> Self:
        """Open the stream: every event from here on is in it."""
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        response, chunks, self._response, self._chunks = self._response, self._chunks, None, None
        if response is None or chunks is None:
            return
        await response.aclose()
        # httpx nests generators and closes the outermost alone; reading on from a closed response ends them all.
        with suppress(httpx.HTTPError, httpx.StreamError, StopAsyncIteration):
            await anext(chunks)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._chunks is None:
                await self._connect()
            await self._read()
        return self._ready.popleft()

    async def _connect(self) -> None:
        headers = {"Accept": "text/event-stream"}
        if self._last is not None:
            headers["Last-Event-ID"] = str(self._last)
        self._reader = EventReader()
        self._response = await self._client.stream(self._target, headers, READ_TIMEOUT)
        self._chunks = self._response.aiter_bytes()

    async def _read(self) -> None:
        """Read the next bytes; reconnect when the connection is lost."""
        assert self._chunks is not None  # noqa: S101 - for the type checker: _connect has just set it
        try:
            self._ready.extend(self._reader.feed(await anext(self._chunks)))
            self._last = self._last if self._reader.position is None else self._reader.position
        except (httpx.HTTPError, StopAsyncIteration):
            await self.aclose()
            await self._reconnect()

    async def _reconnect(self) -> None:
        window = RetryWindow()
        while (seconds := window.next()) is not None:
            await sleep(seconds)
            try:
                return await self._connect()
            except NodeUnreachable:
                continue
        return await self._connect()
