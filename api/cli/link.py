"""The command line's connection to its node: one call at a time over http.client, which starts faster than httpx."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from ...protocols.bodies import restore
from ...protocols.errors import DeadlineExceeded, InvalidRequest, NotFound, TwinshareError, Unavailable
from ...protocols.operation import Operation
from ..exchange import TABLE, Backoff, NodeUnreachable, Request, compose, read, says_it_stops
from .hints import with_hint
from .locate import find_node

if TYPE_CHECKING:
    from ..websocket import ClientSocket

CONNECT_WITHIN = 5.0
READ_WITHIN = 30.0
# An upload is hashed and converted before it is answered.
PATIENCE = 900.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of a node that listens on `unix:PATH`."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_WITHIN)
        self.sock.connect(self._path)


class Link:
    """A connection that opens itself, and repeats what a lost one cut off as RESTClient does."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._prefix = ""
        # Whether a node was ever there: then it is worth waiting for.
        self._met = False
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = _UnixConnection(url.removeprefix("unix:")) if url.startswith("unix:") else self._over_tcp()

    def _over_tcp(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidRequest(f"'{self.url}' is not the URL of a node; it looks like http://127.0.0.1:8080")
        self._prefix = parts.path
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname, port, timeout=CONNECT_WITHIN)

    def close(self) -> None:
        self._http.close()

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, peer: str | None = None) -> Any:
        """Call an operation of the table and return its result. Raises: what RESTClient raises."""
        try:
            return restore(self.send(compose(TABLE[name], arguments or {}, peer)))
        except NotFound as error:
            raise with_hint(self.call, error, arguments or {}, peer) from None

    def begin(self, name: str, arguments: Mapping[str, Any], peer: str | None = None) -> Operation:
        """Start a mutation and return its operation at once."""
        try:
            return cast("Operation", self.send(compose(TABLE[name], arguments, peer, detach=True)))
        except NotFound as error:
            raise with_hint(self.call, error, arguments, peer) from None

    def send(self, request: Request, content: Iterable[bytes] | None = None) -> Any:
        """One exchange; `content` is streamed as the body, once.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        backoff: Backoff | None = None
        while True:
            try:
                self._connect()
                return self._exchange(request, content)
            except (NodeUnreachable, Unavailable, http.client.HTTPException, OSError) as error:
                self._http.close()
                self._met = self._met or not isinstance(error, NodeUnreachable)
                backoff = backoff or Backoff()
                away = not isinstance(error, Unavailable) or says_it_stops(error)
                delay = backoff.next() if away and self._met and content is None else None
                if delay is None:
                    raise self._renamed(error) from None
                time.sleep(delay)

    def upgrade(self, target: str, websocket: ClientSocket) -> tuple[socket.socket, bytes]:
        """Turn the connection into a websocket: its socket, which does not block, and what came on it already.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        self._http.close()
        self._connect()
        self._http.sock.settimeout(READ_WITHIN)
        try:
            self._http.request("GET", self._prefix + target, headers={**websocket.headers, **self._headers})
            answer = self._http.getresponse()
            if answer.status != 101:
                read(None, answer.status, "", answer.read())
            websocket.check(answer.status, answer.headers.get("sec-websocket-accept", ""))
            self._http.sock.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                return self._http.sock, answer.fp.read1() or b""
            return self._http.sock, b""
        except TimeoutError:
            raise DeadlineExceeded(f"{self.url} did not answer in time") from None
        except (http.client.HTTPException, OSError) as error:
            raise self._renamed(error) from None

    def _renamed(self, error: Exception) -> TwinshareError:
        if isinstance(error, TwinshareError):
            return error
        return NodeUnreachable(f"the connection to {self.url} broke: {error or type(error).__name__}")

    def _connect(self) -> None:
        if self._http.sock is not None:
            return
        try:
            self._http.timeout = CONNECT_WITHIN
            self._http.connect()
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise NodeUnreachable(f"no node answers at {self.url}: {reason}; is it running?") from None

    def _exchange(self, request: Request, content: Iterable[bytes] | None) -> Any:
        self._http.sock.settimeout(READ_WITHIN if content is None else PATIENCE)
        try:
            self._http.request(
                request.verb,
                self._prefix + request.target,
                body=content if content is not None else request.body or None,
                headers={**request.headers, **self._headers},
            )
        except (BrokenPipeError, ConnectionResetError):
            # A node that refuses an upload answers before it has read all of it.
            if content is None:
                raise
        try:
            answer = self._http.getresponse()
            body = answer.read()
        except TimeoutError:
            self._http.close()
            raise DeadlineExceeded(
                f"{self.url} did not answer in time; see 'twinshare op ls' for what goes on"
            ) from None
        self._met = True
        return read(request.answer, answer.status, answer.headers.get_content_type(), body)


@contextmanager
def open_link() -> Iterator[Link]:
    """The node that the environment or a data directory names. Raises: NodeUnreachable, InvalidRequest."""
    place = find_node()
    link = Link(place.url, place.token)
    try:
        yield link
    finally:
        link.close()
