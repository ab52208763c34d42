"""Carries requests to one node over httpx, under asyncio or trio, and repeats those that a lost connection cut off."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import httpx

from ..protocols.errors import DeadlineExceeded, Unavailable
from .exchange import Backoff, NodeUnreachable, Request, read, says_it_stops

CONNECT_WITHIN = 5.0
# A connection that broke after it stood: the node was there, and may have done what it was asked.
_LOST = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
_AWAY = (*_LOST, httpx.ConnectError, httpx.ConnectTimeout)


async def pause(seconds: float) -> None:
    """Sleep under whichever of the two loops runs; whoever runs trio has imported it."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


class _Sent(httpx.AsyncByteStream):
    """What a request carries. httpx's own is a generator, left open when a connection breaks: trio warns of those."""

    def __init__(self, content: bytes | AsyncIterator[bytes]) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content) if isinstance(self._content, bytes) else self._content


class _Once:
    def __init__(self, content: bytes) -> None:
        self._left = [content]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class Connection:
    """An httpx client bound to one node.

    `timeout` bounds a read, `patience` the answer to a mutation, which may take as long as its operation.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        timeout: float,
        patience: float,
        *,
        verify: Any = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        if base_url.startswith("unix:"):
            transport = httpx.AsyncHTTPTransport(uds=base_url.removeprefix("unix:"))
            self.base_url = "http://localhost"
        self._timeout = httpx.Timeout(timeout, connect=min(CONNECT_WITHIN, timeout))
        self._patience = httpx.Timeout(timeout, connect=min(CONNECT_WITHIN, timeout), read=patience)
        # Whether a node was ever there: then it is worth waiting for.
        self._met = False
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            # Loading the certificate authorities takes 50 ms: not for a connection that has no certificate.
            verify=verify if base_url.startswith("https:") else False,
            transport=transport,
            # A proxy set for the web must not see what is said to the node next door.
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
        """One exchange. A mutation is repeated under its one idempotency key, so it happens once.

        Where no node ever answered it fails at once; one that was there is given time to come back.
        A streamed `content` can be sent once only.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        backoff: Backoff | None = None
        while True:
            try:
                return await self._exchange(request, content)
            except (httpx.HTTPError, Unavailable) as error:
                failure = self._renamed(error) if isinstance(error, httpx.HTTPError) else error
                self._met = self._met or isinstance(error, _LOST)
                backoff = backoff or Backoff()
                away = isinstance(error, _AWAY) or says_it_stops(error)
                delay = backoff.next() if away and self._met and content is None else None
                if delay is None:
                    raise failure from None
                await pause(delay)

    async def _exchange(self, request: Request, content: AsyncIterator[bytes] | None) -> Any:
        timeout = self._patience if request.mutates else self._timeout
        body = request.body if content is None else content
        asked = self._http.build_request(
            request.verb,
            self.base_url + request.target,
            headers=dict(request.headers),
            content=body or None,
            timeout=timeout,
        )
        asked.stream = _Sent(body)
        answer = await self._http.send(asked)
        self._met = True
        return read(request.answer, answer.status_code, answer.headers.get("content-type", ""), answer.content)

    async def stream(self, target: str, headers: dict[str, str], silence: float) -> httpx.Response:
        """Open an answer that is read as it comes, and given up after `silence` seconds without a byte.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        request = self._http.build_request(
            "GET",
            self.base_url + target,
            headers=headers,
            timeout=httpx.Timeout(silence, connect=self._timeout.connect),
        )
        request.stream = _Sent(b"")
        try:
            answer = await self._http.send(request, stream=True)
            if answer.status_code >= 300:
                read(None, answer.status_code, "", await answer.aread())
        except httpx.HTTPError as error:
            raise self._renamed(error) from error
        return answer

    def _renamed(self, error: httpx.HTTPError) -> DeadlineExceeded | NodeUnreachable:
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            return DeadlineExceeded(f"{self.base_url} did not answer in time; a mutation goes on as its operation")
        reason = str(error) or type(error).__name__
        return NodeUnreachable(f"no twinshare node answers at {self.base_url}: {reason}; is it running?")
