"""The way out: connections to public addresses only, or to hosts that the configuration names.

A name is resolved here and the connection goes to an address that was judged, so that no second answer of a name
server can lead inside. This holds for every request, and so for every redirect.

Behind a proxy it is the proxy that resolves: a name which leads inside by this machine's name servers is refused, as an
address is; a name that is unknown here is the proxy's to judge.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import ssl
from collections.abc import Sequence

import httpcore
import httpx
import trio

from ....protocols.errors import RegistryFailed
from ..settings import RegistrySettings
from .proxies import ProxyRules

# Of the 64 KiB that are read at a time otherwise, each costs a turn of the whole loop: a fast disk pull is bound by it.
httpcore.AsyncHTTP11Connection.READ_NUM_BYTES = 256 * 1024  # pyright: ignore[reportAttributeAccessIssue] - a Literal there
CONNECT_TIMEOUT = 15.0
PROXY_RESOLVE_TIMEOUT = 3.0
"""Seconds to ask for a name that the proxy resolves anyway."""
# A name server is asked once in so many seconds for a host: a delta of an image is hundreds of requests.
KEPT = 30.0
_MOST_KEPT = 256
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""What else there is of IPv6 is local, or wraps an address that this machine may translate."""
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20")))
"""What `is_global` takes for public: protocol assignments (a cloud's metadata at .192), 6to4 relays, Azure's host,
documentation."""


class PrivateAddressError(RegistryFailed):
    """A host leads into this machine or its network. Whoever named that host himself hears AddressRefused instead."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's, also when it is wrapped in another."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found not in _GLOBAL_UNICAST:
            return False
    return found.is_global and not found.is_multicast and not any(found in network for network in _NOT_PUBLIC)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, in the order to try them. Raises: httpx.ConnectError."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        raise httpx.ConnectError(f"the host {host} is not known: {error or 'no answer'}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class GuardedTransport(httpx.AsyncBaseTransport):
    """An httpx transport with one pool for each host. `trusted` are the hosts that may be anywhere."""

    def __init__(self, trusted: Sequence[RegistrySettings], proxies: ProxyRules) -> None:
        self._trusted = {settings.host: settings for settings in trusted}
        self._proxies = proxies
        self._pools: dict[tuple[str, str, int], httpx.AsyncHTTPTransport] = {}
        self._found: dict[tuple[str, int], tuple[float, list[str]]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises: PrivateAddressError, httpx.TransportError."""
        host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
        settings = self._trusted.get(request.url.netloc.decode().lower())
        proxy = self._proxies.proxy_for(request.url)
        pool = await self._pool(request.url, port, settings, proxy)
        if proxy is not None:
            return await self._through(proxy, pool, request, port, settings)
        addresses = await self._addresses(host, port)
        if settings is None:
            addresses = [address for address in addresses if is_public(address)]
        if not addresses:
            raise _leads_inside(host)
        request.extensions = {**request.extensions, "sni_hostname": host}
        failure: httpx.TransportError | None = None
        for address in addresses:
            try:
                response = await pool.handle_async_request(_to(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
                continue
            if failure is not None:
                self._prefer(host, port, address)
            return response
        self._found.pop((host, port), None)
        raise failure or httpx.ConnectError(f"{host} has no address")

    async def _through(
        self,
        proxy: httpx.URL,
        pool: httpx.AsyncHTTPTransport,
        request: httpx.Request,
        port: int,
        settings: RegistrySettings | None,
    ) -> httpx.Response:
        """Send a request by a proxy. Raises: PrivateAddressError, httpx.TransportError."""
        host = request.url.host
        if settings is None and not await self._may_be_public(host, port):
            raise _leads_inside(host)
        try:
            return await pool.handle_async_request(request)
        except httpx.ProxyError as error:
            raise httpx.ProxyError(f"the proxy {proxy.host} refuses: {error}") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise httpx.ConnectError(f"by the proxy {proxy.host}: {error}") from None

    async def _may_be_public(self, host: str, port: int) -> bool:
        """Whether nothing that is known here says that a host lies inside: behind a proxy names may be unknown."""
        try:
            with trio.fail_after(PROXY_RESOLVE_TIMEOUT):
                addresses = await self._addresses(host, port)
        except (httpx.ConnectError, trio.TooSlowError):
            self._found[host, port] = trio.current_time() + KEPT, []
            return True
        return not addresses or any(is_public(address) for address in addresses)

    def _prefer(self, host: str, port: int, address: str) -> None:
        """The next requests need not try first what cannot be reached."""
        until, addresses = self._found.get((host, port), (0.0, []))
        self._found[host, port] = until, [address, *(other for other in addresses if other != address)]

    async def _addresses(self, host: str, port: int) -> list[str]:
        until, addresses = self._found.get((host, port), (0.0, []))
        if trio.current_time() >= until:
            addresses = await resolve(host, port)
            if len(self._found) >= _MOST_KEPT:
                self._found.clear()
            self._found[host, port] = trio.current_time() + KEPT, addresses
        return addresses

    async def _pool(
        self, url: httpx.URL, port: int, settings: RegistrySettings | None, proxy: httpx.URL | None
    ) -> httpx.AsyncHTTPTransport:
        key = (url.scheme, url.host, port)
        if key not in self._pools:
            verify: ssl.SSLContext | bool = False  # nothing to verify without TLS
            if url.scheme == "https":
                verify = await trio.to_thread.run_sync(_context, settings.ca_file if settings else "")
            limits = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=30)
            pool = httpx.AsyncHTTPTransport(verify=verify, limits=limits, trust_env=False, proxy=_proxy(proxy))
            self._pools.setdefault(key, pool)
        return self._pools[key]

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()


def _proxy(address: httpx.URL | None) -> httpx.Proxy | None:
    """A user and password in the address become the login at the proxy."""
    return None if address is None else httpx.Proxy(address)


def _leads_inside(host: str) -> PrivateAddressError:
    return PrivateAddressError(
        f"{host} leads to an address inside this network; list it under [[images.registries]] to allow it"
    )


@functools.lru_cache(maxsize=16)
def _context(ca_file: str) -> ssl.SSLContext:
    """Blocking: reading the system's authorities takes a tenth of a second."""
    return ssl.create_default_context(cafile=ca_file or None)


def _to(request: httpx.Request, address: str) -> httpx.Request:
    """The same request on its way to an address; its Host header and its TLS name stay."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )
