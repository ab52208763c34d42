"""Requests to registries and other servers, under the policy of `http_policy`, all bounded.

A body that breaks goes on where it broke. Bytes are taken as they come: no transport encoding is asked for and none is
undone. Redirects of every method are followed step by step, each checked; 303 alone turns the method into GET.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

import httpx
import trio

from ....protocols.access import Role
from ....protocols.errors import AddressRefused, ImageNotFound, RegistryFailed
from ..port import Report, Requester
from ..settings import RegistrySettings
from .auth import Credentials, find_credentials, may_use, own_credentials
from .http_body import MAX_ANSWER, read_body, received
from .http_policy import LOGIN_CURE, PassingError, Retry, new_backoff, passes, reason_of, retry_after
from .login import Find, Logins
from .proxies import ProxyRules
from .transport import GuardedTransport, PrivateAddressError

MAX_REDIRECTS = 5
KNOWN_FOR = 180.0
"""Seconds after its last answer in which a server that cannot be reached is one that restarts."""
_TIMEOUT = httpx.Timeout(30.0, connect=20.0, write=120.0, pool=120.0)
_HEADERS = {"accept-encoding": "identity", "user-agent": "twinshare"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")

Body = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Request:
    """`scope` is what a registry's token must allow, or None where no login is answered.

    `led` tells that a server sent us to the address: nobody asked for it.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    scope: str | None = None
    content: Body | None = None
    led: bool = False


class HttpClient:
    """One for a node; closed by `close`. `sleep` waits between attempts, `proxy` is as `ProxyRules.read` has it."""

    def __init__(
        self,
        settings: Sequence[RegistrySettings],
        sleep: Callable[[float], Awaitable[None]] = trio.sleep,
        proxy: str = "",
    ) -> None:
        transport = GuardedTransport(settings, ProxyRules.read(proxy))
        self._client = httpx.AsyncClient(transport=transport, timeout=_TIMEOUT, headers=_HEADERS, trust_env=False)
        self._insecure = frozenset(entry.host for entry in settings if entry.insecure)
        self.policy = Retry(sleep)
        self._settings = settings
        self._heard: dict[bytes, float] = {}
        self._logins = self._new_logins(partial(find_credentials, settings=settings))
        self._restricted: dict[tuple[Role, bool], Logins] = {}

    def _new_logins(self, find: Find) -> Logins:
        return Logins(self._client, find, self._insecure, self.policy)

    def acting_for(self, requester: Requester, *, push: bool) -> HttpClient:
        """Return this client with the logins that serve the requester. What one logs in with serves nobody else."""
        caller, given = requester.caller, requester.credentials
        if given is None and caller.uses_node_credentials:
            return self
        client = copy(self)
        if given is not None:
            client._logins = self._new_logins(lambda host: own_credentials(host, given))
            return client

        def find(host: str) -> Credentials | None:
            allowed = may_use(caller, host, self._settings, push=push)
            return find_credentials(host, self._settings) if allowed else None

        client._logins = self._restricted.setdefault((caller.role, push), self._new_logins(find))
        return client

    def reporting(self, report: Report) -> HttpClient:
        """Return this client for an operation, whose progress says why it has to wait."""
        client = copy(self)
        client.policy = self.policy.reporting(report)
        return client

    async def close(self) -> None:
        await self._client.aclose()

    def base(self, host: str) -> str:
        """Where a registry is: plain http only where the configuration says so."""
        return f"{'http' if host in self._insecure else 'https'}://{host}"

    async def fetch(self, request: Request, limit: int = MAX_ANSWER) -> tuple[httpx.Response, bytes]:
        """The whole answer, at most `limit` bytes. Raises: ImageNotFound for 404, RegistryFailed."""

        async def attempt() -> tuple[httpx.Response, bytes]:
            async with self.open(request) as response:
                return response, await read_body(response, limit)

        return await self.policy.run(attempt)

    async def stream(
        self, url: str, start: int, end: int | None, *, scope: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of `url` from `start` to `end`; a broken connection is taken up where it broke.

        Without `end`, what the server calls the end is believed. Close it (`aclosing`) when it is left early.
        Raises: ImageNotFound, RegistryFailed.
        """
        position, backoff = start, new_backoff()
        while end is None or position < end:
            try:
                whole = position == 0 and end is None
                headers = {} if whole else {"range": f"bytes={position}-{'' if end is None else end - 1}"}
                async with self.open(Request("GET", url, headers, scope)) as response:
                    skip = _skipped(response, position)
                    async with aclosing(received(response)) as parts:
                        async for data in parts:
                            part, skip = data[skip:], max(0, skip - len(data))
                            part = part if end is None else part[: end - position]
                            if part:
                                position += len(part)
                                backoff.reset()
                                yield part
                            elif position == end:
                                break  # more than was asked for
                if end is None or position == end:
                    return
                raise PassingError(f"{_host(url)} ends too early")
            except PassingError as error:
                await self.policy.wait(backoff, error)

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[httpx.Response]:
        """Send a request, log in and follow redirects where need be; the body is still to be read.

        Raises: PassingError, ImageNotFound for 404, RegistryFailed, AddressRefused when the host that was asked for
        leads inside.
        """
        response = await self._send(request)
        try:
            await _check_status(response, request)
            yield response
        except httpx.TransportError as error:
            raise PassingError(f"{_host(request.url)} breaks off ({_reason(error)})", known=True) from None
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await response.aclose()

    async def _send(self, request: Request) -> httpx.Response:
        url, logged_in = httpx.URL(request.url), False
        first = url
        for _ in range(MAX_REDIRECTS + 2):
            home = _origin(url) == _origin(first)
            headers = dict(request.headers)
            if home and request.scope is not None and (token := self._logins.known(url.netloc.decode(), request.scope)):
                headers["authorization"] = token
            try:
                response = await self._once(request, url, headers)
            except PrivateAddressError as error:
                if url is first and not request.led:
                    raise AddressRefused(error.message) from None
                raise
            if response.status_code == 401 and home and request.scope is not None and not logged_in:
                challenge = response.headers.get("www-authenticate", "")
                await response.aclose()
                await self._logins.answer(url, request.scope, challenge, headers.get("authorization"))
                logged_in = True
            elif response.has_redirect_location:
                await response.aclose()
                if response.status_code == 303 and request.method != "HEAD":
                    request = replace(request, method="GET", content=None)
                url = httpx.URL(self.joined(str(url), response.headers.get("location", "")))
            else:
                return response
        raise RegistryFailed(f"{first.host} redirects more than {MAX_REDIRECTS} times")

    async def _once(self, request: Request, url: httpx.URL, headers: Mapping[str, str]) -> httpx.Response:
        content = request.content() if request.content else None
        try:
            response = await self._client.send(
                self._client.build_request(request.method, url, headers=headers, content=content), stream=True
            )
            self._heard[url.netloc] = trio.current_time()
            return response
        except httpx.UnsupportedProtocol:
            raise RegistryFailed(f"{url.scheme} is not spoken here") from None
        except httpx.TransportError as error:
            if "certificate" in str(error).lower():
                raise RegistryFailed(f"{url.host} cannot prove who it is: {_reason(error)}") from None
            known = trio.current_time() - self._heard.get(url.netloc, -KNOWN_FOR) < KNOWN_FOR
            raise PassingError(f"{url.host} cannot be reached ({_reason(error)})", known=known) from None

    def joined(self, base: str, location: str) -> str:
        """Where a server's Location leads. Raises: RegistryFailed when it is nowhere or without encryption."""
        url = httpx.URL(base)
        try:
            target = url.join(location)
        except httpx.InvalidURL:
            raise RegistryFailed(f"{url.host} sends us to a place that is none") from None
        if target.scheme != "https" and (target.scheme != "http" or target.netloc.decode() not in self._insecure):
            raise RegistryFailed(f"{url.host} sends us to {target.host} without encryption")
        return str(target)


class RangeRefused(RegistryFailed):
    """The server has nothing from the place on that was asked for."""


async def _check_status(response: httpx.Response, request: Request) -> None:
    status, host = response.status_code, _host(request.url)
    if status < 400:
        return
    reason = ""
    with suppress(RegistryFailed, PassingError, httpx.TransportError):
        reason = reason_of(await read_body(response, MAX_ANSWER))
    reason = f" ({reason})" if reason else ""
    if status == 404:
        raise ImageNotFound(f"{host} has no such image, or does not show it without a login{reason}")
    if status in {401, 403}:
        raise RegistryFailed(f"{host} refuses access{reason}; {LOGIN_CURE}")
    if passes(status):
        raise PassingError(f"{host} answers {status}{reason}", retry_after(response))
    kind = RangeRefused if status == 416 else RegistryFailed
    raise kind(f"{host} answers {status} to {request.method}{reason}")


def _skipped(response: httpx.Response, position: int) -> int:
    """How many bytes at the start of the body were not asked for. Raises: RegistryFailed."""
    if response.status_code != 206:
        return position
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or int(match[1]) != position:
        raise RegistryFailed(f"{response.url.host} answers with another range than was asked for")
    return 0


def _origin(url: httpx.URL) -> tuple[str, bytes]:
    return url.scheme, url.netloc


def _host(url: str) -> str:
    return httpx.URL(url).netloc.decode()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
