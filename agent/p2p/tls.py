"""TLS 1.3 between two ends that have exchanged their certificates on an authenticated connection.

Each end makes a key for one connection, and trusts the one certificate that the other has sent: no authority, no name,
and no date, since clocks differ.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "twinshare")])
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """`certificate`: self-signed, DER. Its key is in memory alone."""

    certificate: bytes
    _pem: bytes = field(repr=False)

    @classmethod
    def make(cls) -> TlsIdentity:
        """Make a key for one connection."""
        key = Ed25519PrivateKey.generate()
        builder = x509.CertificateBuilder(_NAME, _NAME, key.public_key(), x509.random_serial_number())
        certificate = builder.not_valid_before(_ALWAYS[0]).not_valid_after(_ALWAYS[1]).sign(key, None)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(certificate.public_bytes(Encoding.DER), private + certificate.public_bytes(Encoding.PEM))

    def wrap(self, sock: socket.socket, far_certificate: bytes, *, server: bool) -> ssl.SSLSocket:
        """Return `sock`, which is taken over, as a TLS socket; `shake_hands` comes next. Raises: OSError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        if server:
            context.num_tickets = 0  # nothing is resumed: the key is for one connection
        try:
            context.load_verify_locations(cadata=far_certificate)
        except ValueError as error:
            raise ssl.SSLError(f"the far side's certificate is none: {error}") from None
        self._load_key(context)
        return context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)

    def _load_key(self, context: ssl.SSLContext) -> None:
        """The interface of OpenSSL takes files alone; this one is in memory."""
        fd = os.memfd_create("twinshare-tls", os.MFD_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            file.write(self._pem)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{fd}")


def shake_hands(tls: ssl.SSLSocket, far_certificate: bytes) -> None:
    """Blocking. Raises: OSError, also when another certificate is shown than the one that was sent."""
    tls.do_handshake()
    if tls.getpeercert(binary_form=True) != far_certificate:
        raise ssl.SSLError("the far side shows another certificate than it has sent")
