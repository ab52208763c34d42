"""Who may come in: the host that was asked for, the page that asks, the caller, and how often.

The order is cheap before dear, and nothing of a request is acted upon before it has passed. What the caller may then do
is the role check of each operation. The rules are those of SECURITY.md, "Callers of the local API".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from ...agent.config import ApiConfig
from ...protocols.access import Caller
from ...protocols.errors import Forbidden, InvalidRequest, Misdirected, RateLimited, Unauthenticated
from .limits import Buckets
from .link import Link
from .request import Request

Authenticate = Callable[[str], Caller | None]

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A reverse proxy of this very user carries requests of others: they need a token.
_PROXIED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
# The node's own user may be a benchmark; what it spends is its own.
LOCAL_SHARE = 50.0
# A wrong token costs as much as this many requests.
WRONG_TOKEN_COST = 20.0


class Guard:
    """Admits requests. `authenticate` knows bearer tokens, `session` the cookies of opened pages."""

    def __init__(self, config: ApiConfig, cookie: str, authenticate: Authenticate, session: Authenticate) -> None:
        self._hosts = LOCAL_NAMES | {host.lower() for host in config.hosts}
        self.origins = frozenset(origin.encode() for origin in config.origins)
        self._cookie = cookie
        self._authenticate = authenticate
        self._session = session
        self._sources = Buckets(config.rate, config.burst)
        self._principals = Buckets(config.rate, config.burst)

    def check_site(self, request: Request) -> None:
        """Was this server meant, and may the page that asks, ask?

        Raises: Misdirected (DNS rebinding), Forbidden (another site's page).
        """
        host = request.headers.get(b"host", b"")
        name = _host_name(host)
        if name not in self._hosts and name != request.link.served:
            raise Misdirected(f"this server is not '{name}'; further names go into api.hosts")
        origin = request.headers.get(b"origin")
        if origin is not None:
            own = (b"https://" if request.link.secure else b"http://") + host
            if origin.lower() != own.lower() and origin not in self.origins:
                raise Forbidden("requests of other sites' pages are refused; api.origins lists the ones that may")
        elif not _same_site(request):
            raise Forbidden("requests of other sites' pages are refused")

    def admit(self, request: Request, now: float) -> Caller:
        """The caller of a request that passed `check_site`.

        Raises: Unauthenticated, RateLimited, InvalidRequest.
        """
        link = request.link
        _charge(self._sources, link.source, now, _share(link))
        caller = self._caller(request, now)
        _charge(self._principals, caller.principal, now, _share(link) if caller is link.local else 1.0)
        return caller

    def _caller(self, request: Request, now: float) -> Caller:
        authorization = request.headers.get(b"authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated("send Authorization: Bearer <token>")
            caller = self._authenticate(_text(secret.strip()))
            if caller is None:
                self._sources.fine(request.link.source, now, WRONG_TOKEN_COST)
                raise Unauthenticated("this token is wrong, revoked or expired")
            return caller
        if request.link.local is not None and not _PROXIED.intersection(request.headers):
            return request.link.local
        caller = self._session(cookie) if (cookie := _cookie(request, self._cookie)) else None
        if caller is None:
            raise Unauthenticated(
                "this needs a token: send Authorization: Bearer <token> (see `twinshare token create`)"
            )
        return caller


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


def _same_site(request: Request) -> bool:
    """What the browser says of the page that asks; programs say nothing. A link from elsewhere may be followed."""
    site = request.headers.get(b"sec-fetch-site", b"none")
    if site in {b"none", b"same-origin"}:
        return True
    return request.verb in SAFE and request.headers.get(b"sec-fetch-mode") == b"navigate"


def _share(link: Link) -> float:
    return LOCAL_SHARE if link.local is not None else 1.0


def _charge(buckets: Buckets, key: str, now: float, share: float) -> None:
    """Raises: RateLimited."""
    wait = buckets.take(key, now, 1.0 / share)
    if wait:
        seconds = math.ceil(wait)
        raise RateLimited(f"too many requests; try again in {seconds} s", retry_after=seconds)


def _text(secret: bytes) -> str:
    try:
        return secret.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidRequest("a token is plain ASCII", path="Authorization") from None


def _cookie(request: Request, name: str) -> str | None:
    header = request.headers.get(b"cookie")
    if header is None:
        return None
    try:
        morsel = SimpleCookie(header.decode("latin-1")).get(name)
    except CookieError:
        return None
    return morsel.value if morsel else None
