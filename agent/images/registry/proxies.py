"""Which proxy a request goes through: the configuration's, else what the environment names as curl and Go read it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.request import getproxies_environment

import httpx

from ....protocols.errors import RegistryFailed

_PORTS = {"http": 80, "https": 443}
DIRECT = "direct"
"""The configured word for no proxy, whatever the environment says."""


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """`by_scheme` is the address of the proxy by the scheme of the request, `all` for any; `without` is NO_PROXY."""

    by_scheme: Mapping[str, str]
    without: str = ""

    @classmethod
    def read(cls, configured: str) -> ProxyRules:
        """`configured` is an address, `direct`, or empty for HTTPS_PROXY, HTTP_PROXY and ALL_PROXY.

        NO_PROXY holds in every case.
        """
        found = getproxies_environment()
        without = found.pop("no", "")
        if configured == DIRECT:
            return cls({})
        return cls({"all": configured} if configured else found, without)

    def proxy_for(self, url: httpx.URL) -> httpx.URL | None:
        """Return the proxy of a request, None for none. Raises: RegistryFailed for one that cannot be used."""
        address = self.by_scheme.get(url.scheme) or self.by_scheme.get("all")
        if (
            not address
            or _is_loopback(url.host)
            or _matches(url.host, url.port or _PORTS.get(url.scheme), self.without)
        ):
            return None
        try:
            proxy = httpx.URL(address if "://" in address else f"http://{address}")
        except httpx.InvalidURL:
            proxy = httpx.URL("")
        if proxy.scheme not in {"http", "https"} or not proxy.host:
            raise RegistryFailed("the proxy (images.proxy or HTTPS_PROXY) is not http://HOST:PORT")
        return proxy


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _matches(host: str, port: int | None, without: str) -> bool:
    """NO_PROXY: names with all that is below them, addresses, networks, `*`; each may end in `:PORT`."""
    for part in without.lower().replace(",", " ").split():
        name, colon, wanted = part.rpartition(":")
        if colon and wanted.isascii() and wanted.isdigit() and (":" not in name or name.endswith("]")):
            if port != int(wanted):
                continue
            part = name
        part = part.strip("[]").removeprefix("*.").removeprefix(".")
        if part == "*" or host == part or host.endswith(f".{part}") or _in_network(host, part):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
