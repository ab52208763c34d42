"""The asynchronous client of one node, over httpx, under asyncio and trio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import httpx

from ..protocols.errors import DeadlineExceeded, TwinshareError, Unavailable
from .exchange import NodeUnreachable, Request, read, trace_headers
from .retry import RetryPolicy, RetryWindow

CONNECT_TIMEOUT = 5.0
_LOST = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
_TOO_LATE = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)


async def sleep(seconds: float) -> None:
    """Sleep under whichever of the two loops runs; whoever runs trio has imported it."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """A request's body. httpx's own is a generator, left open when a connection breaks: trio warns of those."""

    def __init__(self, content: bytes | AsyncIterator[bytes]) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _SingleChunk(self._content) if isinstance(self._content, bytes) else self._content


class _SingleChunk:
    def __init__(self, content: bytes) -> None:
        self._chunks = [content]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.pop()


class AsyncApiClient:
    """An httpx client bound to one node.

    `timeout` bounds a read, `mutation_timeout` the response to a mutation, which may take as long as its operation;
    both in seconds.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        timeout: float,
        mutation_timeout: float,
        *,
        verify: Any = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        if base_url.startswith("unix:"):
            transport = httpx.AsyncHTTPTransport(uds=base_url.removeprefix("unix:"))
            self.base_url = "http://localhost"
        self._timeout = httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout))
        self._mutation_timeout = httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout), read=mutation_timeout)
        self._retry = RetryPolicy()
        self.traceparent: str | None = None
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            # Loading the certificate authorities takes 50 ms: not for a connection that has no certificate.
            verify=verify if base_url.startswith("https:") else False,
            transport=transport,
            # A proxy that is set for the web must not read what is sent to a node.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def send(self, request: Request, content: AsyncIterator[bytes] | None = None) -> Any:
        """Send one request, again after a lost connection as RetryPolicy says. A streamed `content` is sent once only.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        window = RetryWindow()
        while True:
            try:
                return await self._exchange(request, content)
            except (httpx.HTTPError, NodeUnreachable, Unavailable) as error:
                failure = self._as_own_error(error) if isinstance(error, httpx.HTTPError) else error
                if content is not None:
                    raise failure from None
                await sleep(self._retry.delay_before_retry(failure, window, repeatable=request.repeatable))

    async def _exchange(self, request: Request, content: AsyncIterator[bytes] | None) -> Any:
        body = request.body if content is None else content
        sent = self._http.build_request(
            request.verb,
            self.base_url + request.target,
            headers={**request.headers, **trace_headers(self.traceparent)},
            content=body or None,
            timeout=self._mutation_timeout if request.mutates else self._timeout,
        )
        sent.stream = _Body(body)
        response = await self._http.send(sent)
        self._retry.record_answer()
        return read(request.answer, response.status_code, response.headers.get("content-type", ""), response.content)

    async def stream(self, target: str, headers: dict[str, str], read_timeout: float) -> httpx.Response:
        """Open a response that is read as it comes, and given up after `read_timeout` seconds without a byte.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        request = self._http.build_request(
            "GET",
            self.base_url + target,
            headers={**headers, **trace_headers(self.traceparent)},
            timeout=httpx.Timeout(read_timeout, connect=self._timeout.connect),
        )
        request.stream = _Body(b"")
        try:
            response = await self._http.send(request, stream=True)
            if response.status_code >= 300:
                read(None, response.status_code, "", await response.aread())
        except httpx.HTTPError as error:
            raise self._as_own_error(error) from error
        return response

    def _as_own_error(self, error: httpx.HTTPError) -> TwinshareError:
        if isinstance(error, _TOO_LATE):
            return DeadlineExceeded(f"{self.base_url} did not answer in time; a mutation goes on as its operation")
        message = f"no twinshare node answers at {self.base_url}: {str(error) or type(error).__name__}; is it running?"
        if isinstance(error, _LOST):
            return NodeUnreachable(message, "lost")
        return NodeUnreachable(message, "connect" if isinstance(error, _NOT_CONNECTED) else "protocol")
