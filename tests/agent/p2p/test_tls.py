"""TLS with certificates that both ends have exchanged: nobody else gets in, whatever is shown."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from twinshare.agent.p2p.tls import TlsIdentity, shake_hands

OURS, THEIRS, OTHER = TlsIdentity.make(), TlsIdentity.make(), TlsIdentity.make()


def meet(client: Callable[[socket.socket], object], server: Callable[[socket.socket], object]) -> tuple[object, object]:
    """What becomes of the two ends of a connection: what they return, or the error that they raise."""

    def run(end: Callable[[socket.socket], object], sock: socket.socket) -> object:
        with sock:
            sock.settimeout(60)
            try:
                return end(sock)
            except OSError as error:
                return error

    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(run, client, near), pool.submit(run, server, far)
        return one.result(), other.result()


def end(own: TlsIdentity, far: TlsIdentity, *, server: bool) -> Callable[[socket.socket], object]:
    """Prove both ends, and exchange a byte: the client of TLS 1.3 is done before the server has looked at it."""

    def run(sock: socket.socket) -> object:
        with own.wrap(sock, far.certificate, server=server) as tls:
            shake_hands(tls, far.certificate)
            tls.sendall(b"x")
            if tls.recv(1) != b"x":
                raise ConnectionResetError("the far side hung up")
            return tls.version()

    return run


def test_two_that_know_each_other() -> None:
    assert meet(end(OURS, THEIRS, server=False), end(THEIRS, OURS, server=True)) == ("TLSv1.3", "TLSv1.3")


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (end(OTHER, THEIRS, server=False), end(THEIRS, OURS, server=True)),
        (end(OURS, THEIRS, server=False), end(OTHER, OURS, server=True)),
        (end(OURS, OTHER, server=False), end(THEIRS, OURS, server=True)),
    ],
    ids=["another client", "another server", "a server that was not meant"],
)
def test_another_one_is_refused_by_both(
    client: Callable[[socket.socket], object], server: Callable[[socket.socket], object]
) -> None:
    for outcome in meet(client, server):
        assert isinstance(outcome, OSError)


def test_no_certificate_and_no_tls() -> None:
    def bare(sock: socket.socket) -> object:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(sock) as tls:
            tls.sendall(b"x")
            return tls.recv(1)

    def plain(sock: socket.socket) -> object:
        sock.sendall(b"\0" * 100)
        return sock.recv(1)

    for client in (bare, plain):
        assert isinstance(meet(client, end(THEIRS, OURS, server=True))[1], ssl.SSLError)


@pytest.mark.parametrize("certificate", [b"x", b"0" * 300, OURS.certificate[:-1]])
def test_what_is_no_certificate_closes_the_socket(certificate: bytes) -> None:
    near, far = socket.socketpair()
    with near, far:
        with near, pytest.raises(OSError):
            OURS.wrap(near, certificate, server=False)
        assert far.recv(1) == b""


def test_a_key_is_not_shown() -> None:
    assert "PRIVATE" not in repr(OURS)
    assert len(OURS.certificate) < 1024


def test_a_certificate_that_is_trusted_and_was_not_sent() -> None:
    def client(sock: socket.socket) -> object:
        with OURS.wrap(sock, THEIRS.certificate, server=False) as tls:
            shake_hands(tls, OTHER.certificate)
        return None

    assert isinstance(meet(client, end(THEIRS, OURS, server=True))[0], ssl.SSLError)
