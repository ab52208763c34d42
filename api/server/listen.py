"""Where the server listens: what may be bound, by whom it may be reached, and what to say when it cannot."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...agent.config import ApiConfig, ConfigError
from ...protocols.endpoint import endpoint

BACKLOG = 256


class CannotListen(Exception):
    """The address cannot be taken; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that listens, and how clients on this machine reach it."""

    socket: socket.socket
    tls: ssl.SSLContext | None
    url: str


@contextmanager
def listening(config: ApiConfig) -> Iterator[Listening]:
    """Take `api.listen`, before anything else is started; port 0 takes a free port, which `url` tells.

    Raises: CannotListen, ConfigError.
    """
    context = _tls(config)
    with _open(config) as listener:
        yield Listening(listener, context, _url(listener, secure=context is not None))
        if listener.family == socket.AF_UNIX:
            Path(listener.getsockname()).unlink(missing_ok=True)


def _open(config: ApiConfig) -> socket.socket:
    """A listening socket at `api.listen`: HOST:PORT, [HOST]:PORT, or unix:PATH.

    Raises: CannotListen; ConfigError for an address that must not or cannot be used as it is.
    """
    if config.listen.startswith("unix:"):
        return _open_unix(Path(config.listen.removeprefix("unix:")))
    family, address = _resolve(config.listen)
    if not ipaddress.ip_address(address[0]).is_loopback and not (config.tls_cert or config.insecure):
        raise ConfigError(
            f"api.listen = {config.listen} can be reached from other machines: give api.tls_cert and api.tls_key, "
            "or set api.insecure = true if you accept that tokens travel in clear"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(_why(config.listen, error)) from None
    return listener


def _resolve(listen: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    host, colon, port = listen.rpartition(":")
    try:
        if not colon or not 0 <= int(port) <= 65535:
            raise ValueError
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, ValueError):
        raise ConfigError(f"api.listen = {listen}: not HOST:PORT with a port from 0 to 65535") from None
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, (str(address[0]), int(address[1]))


def _open_unix(path: Path) -> socket.socket:
    """A socket that its owner alone can open. One that a dead server left behind is taken over."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            if _answers(path):
                raise CannotListen(f"cannot listen on {path}: another server does")
            path.unlink()
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise CannotListen(_why(str(path), error)) from None
        raise
    finally:
        os.umask(umask)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _why(where: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the port is in use; choose another with --api HOST:PORT (0: any)"
    return f"cannot listen on {where}: {error.strerror or error}"


def _tls(config: ApiConfig) -> ssl.SSLContext | None:
    """The server's TLS, or None without it. Raises: ConfigError."""
    if not config.tls_cert and not config.tls_key:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"api.tls_cert and api.tls_key cannot be used: {error}") from None
    return context


def _url(listener: socket.socket, *, secure: bool) -> str:
    """How clients on this machine reach it."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return f"{'https' if secure else 'http'}://{endpoint(host, port)}"
