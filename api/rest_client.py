"""`RESTClient`: a node's REST API from Python, under asyncio and under trio.

Every operation of the table is reached through the stubs (`client.vms(peer)`…), which return what it returns.
The methods that the guide names stand beside them; their actions return the guide's bodies.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import httpx

from .async_client import AsyncApiClient
from .calls import Calls
from .event_stream import EventStream
from .exchange import NodeUnreachable, below, guest_path

if TYPE_CHECKING:
    from .console import Console
    from .guest_stream import GuestStream

__all__ = ["NodeUnreachable", "RESTClient"]


class RESTClient(Calls):
    """A client of one node; use it with `async with`.

    `timeout` bounds a read, `mutation_timeout` a mutation, in seconds. Each mutation carries an idempotency key and is
    repeated under it when the connection is lost, so that it happens once.

    Raises, from every method: the class of protocols/errors.py that the node raised; `NodeUnreachable` when no node
    answers; `DeadlineExceeded` when it does not answer in time.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        token: str | None = None,
        timeout: float = 30.0,
        *,
        mutation_timeout: float = 900.0,
        verify: Any = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncApiClient(base_url, token, timeout, mutation_timeout, verify=verify, transport=transport)
        super().__init__(self._client)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    @property
    def traceparent(self) -> str | None:
        """What goes along with each request (W3C Trace Context): it is in the nodes' logs, operations and events."""
        return self._client.traceparent

    @traceparent.setter
    def traceparent(self, value: str | None) -> None:
        self._client.traceparent = value

    # Streams

    def events(self, after: int | None = None) -> EventStream:
        """The node's events as an async iterator: those after the id `after`, else what happens from now on."""
        return EventStream(self._client, below("/events", None), after)

    def attach_session(
        self, vm: str, session: str, offset: int | None = None, peer: str | None = None, *, writer: str = ""
    ) -> AbstractAsyncContextManager[GuestStream]:
        """A session's output from `offset` on (else the first byte that is kept), and its input, for the block.

        `writer` is what the first one's `opened` has, for a client that sends input again.
        """
        from .guest_stream import open_guest_stream

        known = {"offset": offset, "writer": writer or None}
        query = "?" + urlencode({name: value for name, value in known.items() if value is not None})
        return open_guest_stream(self._client, guest_path(vm, f"/sessions/{session}/attach", peer) + query)

    def console(self, vm: str, peer: str | None = None) -> AbstractAsyncContextManager[Console]:
        """The serial console of a running VM, on the node or on `peer`, for as long as the block lasts."""
        from .console import open_console

        return open_console(self._client, vm, peer)
