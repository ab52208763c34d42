"""The blocking client of one node, over http.client: importing httpx alone costs more CPU than a whole `vm ls`."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from ..protocols.errors import DeadlineExceeded, InvalidRequest, TwinshareError, Unavailable
from ..protocols.operation import Operation
from .exchange import NodeUnreachable, Request, read, trace_headers
from .retry import RetryPolicy, RetryWindow

if TYPE_CHECKING:
    from .websocket import ClientSocket

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
MUTATION_TIMEOUT = 900.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over the socket of a node that listens on `unix:PATH`."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT)
        self.sock.connect(self._path)


class ApiClient:
    """One connection to a node, opened when it is needed; one request at a time.

    `timeout` bounds a response, `mutation_timeout` the one to a mutation, which may take as long as its operation.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        timeout: float = READ_TIMEOUT,
        mutation_timeout: float = MUTATION_TIMEOUT,
        *,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._prefix = ""
        self._timeout, self._mutation_timeout = timeout, mutation_timeout
        self._verify = verify
        self._retry = RetryPolicy()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.traceparent: str | None = None
        unix_path = base_url.removeprefix("unix:")
        self._http = self._over_tcp() if unix_path == base_url else _UnixConnection(unix_path)

    def _over_tcp(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.base_url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise InvalidRequest(f"'{self.base_url}' is not the URL of a node; it looks like http://127.0.0.1:8080")
        self._prefix = parts.path
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, port, timeout=CONNECT_TIMEOUT, context=self._verify)
        return http.client.HTTPConnection(parts.hostname, port, timeout=CONNECT_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, request: Request, content: Iterable[bytes] | None = None) -> Any:
        """Send one request, again after a lost connection as RetryPolicy says. A streamed `content` is sent once only.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        window = RetryWindow()
        while True:
            try:
                return self._exchange(request, content)
            except (NodeUnreachable, Unavailable, http.client.HTTPException, OSError) as error:
                self._http.close()
                failure = self._as_own_error(error)
                if content is not None:
                    raise failure from None
                time.sleep(self._retry.delay_before_retry(failure, window, repeatable=request.repeatable))

    def upgrade(self, target: str, websocket: ClientSocket) -> tuple[socket.socket, bytes]:
        """Turn the connection into a websocket: its socket, which does not block, and the bytes already received.

        Raises: NodeUnreachable, DeadlineExceeded, and whatever the node raises.
        """
        self._http.close()
        self._connect()
        self._http.sock.settimeout(self._timeout)
        try:
            self._http.request(
                "GET",
                self._prefix + target,
                headers={**websocket.headers, **self._headers, **trace_headers(self.traceparent)},
            )
            response = self._http.getresponse()
            if response.status != 101:
                read(None, response.status, "", response.read())
            websocket.check(response.status, response.headers.get("sec-websocket-accept", ""))
            self._http.sock.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                return self._http.sock, response.fp.read1() or b""
            return self._http.sock, b""
        except (http.client.HTTPException, OSError) as error:
            raise self._as_own_error(error) from None

    def _as_own_error(self, error: Exception) -> TwinshareError:
        if isinstance(error, TwinshareError):
            return error
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"{self.base_url} did not answer in time; see 'twinshare op ls' for what goes on")
        return NodeUnreachable(f"the connection to {self.base_url} broke: {error or type(error).__name__}", "lost")

    def _connect(self) -> None:
        if self._http.sock is not None:
            return
        try:
            self._http.connect()
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            message = f"no node answers at {self.base_url}: {reason}; is it running?"
            raise NodeUnreachable(message, "connect") from None

    def _exchange(self, request: Request, content: Iterable[bytes] | None) -> Any:
        self._connect()
        # A detached mutation is answered at once, with its operation.
        slow = content is not None or (request.mutates and request.answer is not Operation)
        self._http.sock.settimeout(self._mutation_timeout if slow else self._timeout)
        try:
            self._http.request(
                request.verb,
                self._prefix + request.target,
                body=content if content is not None else request.body or None,
                headers={**request.headers, **self._headers, **trace_headers(self.traceparent)},
            )
        except (BrokenPipeError, ConnectionResetError):
            # A node that refuses an upload answers before it has read all of it.
            if content is None:
                raise
        response = self._http.getresponse()
        body = response.read()
        self._retry.record_answer()
        return read(request.answer, response.status, response.headers.get_content_type(), body)
