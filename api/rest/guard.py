"""The guard: the host that was asked for, the page that asks, the path, the caller, and how often it may ask.

It is `before_request` and `before_websocket` of the application. Cheap checks come first, and nothing of a request is
acted upon before it has passed. What the caller may then do is the role check of each route. The rules are those of
SECURITY.md, "Callers of the local API".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import unquote_to_bytes

import trio

from ...agent.config import ApiConfig
from ...agent.token_buckets import TokenBuckets
from ...protocols.access import Caller
from ...protocols.errors import Forbidden, InvalidRequest, Misdirected, NotFound, RateLimited, Unauthenticated
from .connection_info import ConnectionInfo
from .requests import RestRequest, RestWebsocket
from .sessions import Session

Incoming = RestRequest | RestWebsocket
Authenticate = Callable[[str], Caller | None]
FindSession = Callable[[str], Session | None]

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A reverse proxy of this very user carries requests of others: they need a token.
# Which fields a proxy adds is no closed list: whatever speaks of forwarding, of another client or host, or of a hop.
_PROXIED = re.compile(
    rb"forward|(client|remote|connecting|real|cluster|source|user|peer)[-_]?(ip|addr)|^via$|[-_]via$|^x-original-|^x-host$"
    rb"|^cf-|^cdn-|^x-envoy|^x-amz|^x-azure|^x-arr-|^fly-|^fastly|^akamai|^x-vercel|proxy|^x-scheme$|^x-request-start$"
)
# The node's own user may be a benchmark; what it spends is its own.
LOCAL_SHARE = 50.0
# A wrong token costs as much as this many requests.
WRONG_TOKEN_COST = 20.0
MAX_PATH = 8192


class Guard:
    """Admits requests. `authenticate` knows bearer tokens, `session` the cookies of opened pages."""

    def __init__(self, config: ApiConfig, cookie: str, authenticate: Authenticate, session: FindSession) -> None:
        self._hosts = LOCAL_NAMES | {host.lower() for host in config.hosts}
        self.origins = frozenset(origin.encode() for origin in config.origins)
        self._cookie = cookie
        self._authenticate = authenticate
        self._session = session
        self._sources = TokenBuckets(config.rate, config.burst)
        self._principals = TokenBuckets(config.rate, config.burst)

    def check(self, request: Incoming, *, is_open: bool) -> None:
        """Let a request in, with its caller; routes that are open to everybody, and OPTIONS, need none.

        Raises: Misdirected, Forbidden, Unauthenticated, RateLimited, InvalidRequest, NotFound.
        """
        request.started_at = trio.current_time()
        request.check_single()
        self.check_site(request)
        needs_caller = not is_open and request.method != "OPTIONS"
        caller = self.admit(request, request.started_at) if needs_caller else None
        _check_path(request.raw_path)
        request.admitted = caller

    def check_site(self, request: Incoming) -> None:
        """Check that this server was meant, and that the page that asks may ask.

        Raises: Misdirected (DNS rebinding), Forbidden (another site's page).
        """
        host = request.fields.get(b"host", b"")
        name = _host_name(host)
        if name not in self._hosts and name != request.connection.served:
            raise Misdirected(f"this server is not '{name}'; further names go into api.hosts")
        origin = request.fields.get(b"origin")
        if origin is not None:
            own = (b"https://" if request.connection.secure else b"http://") + host
            if origin.lower() != own.lower() and origin not in self.origins:
                raise Forbidden("requests of other sites' pages are refused; api.origins lists the ones that may")
        elif not _same_site(request):
            raise Forbidden("requests of other sites' pages are refused")

    def admit(self, request: Incoming, now: float) -> Caller:
        """Return the caller of a request that passed `check_site`.

        Raises: Unauthenticated, RateLimited, InvalidRequest.
        """
        connection = request.connection
        _charge(self._sources, connection.source, now, _share(connection))
        caller = self._caller(request, now)
        connection.admitted = True
        _charge(self._principals, caller.principal, now, _share(connection) if caller is connection.local else 1.0)
        return caller

    def _caller(self, request: Incoming, now: float) -> Caller:
        authorization = request.fields.get(b"authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Unauthenticated("send Authorization: Bearer <token>")
            caller = self._authenticate(_text(secret.strip()))
            if caller is None:
                self._sources.fine(request.connection.source, now, WRONG_TOKEN_COST)
                raise Unauthenticated("this token is wrong, revoked or expired")
            return caller
        if request.connection.local is not None and not any(map(_PROXIED.search, request.fields)):
            return request.connection.local
        session = self._session(cookie) if (cookie := _cookie(request, self._cookie)) else None
        if session is None:
            raise Unauthenticated(
                "this needs a token: send Authorization: Bearer <token> (see `twinshare token create`)"
            )
        request.session = session
        return session.caller


def _check_path(path: bytes) -> None:
    """Raises: InvalidRequest, NotFound: what the routes' segments could not be decoded from."""
    if len(path) > MAX_PATH or not path.startswith(b"/"):
        raise InvalidRequest(f"the request target must be a path of at most {MAX_PATH} bytes", path="path")
    if path.startswith(b"//"):
        raise NotFound("there is nothing below an empty name")
    if b"%" in path:
        try:
            unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise InvalidRequest("the path is not UTF-8", path="path") from None


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name


def _same_site(request: Incoming) -> bool:
    """What the browser says of the page that asks; programs say nothing. A link from elsewhere may be followed."""
    site = request.fields.get(b"sec-fetch-site", b"none")
    if site in {b"none", b"same-origin"}:
        return True
    return request.method in SAFE and request.fields.get(b"sec-fetch-mode") == b"navigate"


def _share(connection: ConnectionInfo) -> float:
    return LOCAL_SHARE if connection.local is not None else 1.0


def _charge(buckets: TokenBuckets, key: str, now: float, share: float) -> None:
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


def _cookie(request: Incoming, name: str) -> str | None:
    header = request.fields.get(b"cookie")
    if header is None:
        return None
    try:
        morsel = SimpleCookie(header.decode("latin-1")).get(name)
    except CookieError:
        return None
    return morsel.value if morsel else None
