"""Bodies of answers: taken as they come over the wire, bounded in size and time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import httpx
import trio

from ....protocols.errors import RegistryFailed
from .http_policy import PassingError

MAX_ANSWER = 1 << 20
# A body that has fewer bytes than this in this many seconds has stalled.
SLOWEST_BYTES = 64 * 1024
SLOWEST_SECONDS = 60.0


async def received(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body as it comes over the wire. Raises: PassingError when it stalls, httpx.TransportError."""
    since, count = trio.current_time(), 0
    async for data in response.aiter_raw():
        yield data
        count += len(data)
        now = trio.current_time()
        if count >= SLOWEST_BYTES:
            since, count = now, 0
        elif now - since > SLOWEST_SECONDS:
            raise PassingError(f"{response.url.host} has stalled")


async def read_body(response: httpx.Response, limit: int) -> bytes:
    """A body of at most `limit` bytes. Raises: RegistryFailed, PassingError, httpx.TransportError."""
    body = bytearray()
    async with aclosing(received(response)) as parts:
        async for data in parts:
            body += data
            if len(body) > limit:
                raise RegistryFailed(f"{response.url.host} answers with more than {limit} bytes")
    return bytes(body)
