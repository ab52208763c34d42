"""Certificates for servers of tests, signed by themselves."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

NAMES = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("registry.test")]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def elliptic() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(key: Key, name: str) -> x509.Certificate:
    """Good for a server at 127.0.0.1 or registry.test, and as the root of what the key signs."""
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(NAMES), critical=False)
        .sign(key, hashes.SHA256())
    )


def private_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as files."""
    key = elliptic()
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(certificate(key, "127.0.0.1").public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(private_pem(key))
    return paths
