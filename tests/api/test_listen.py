"""Where the server listens: loopback freely, elsewhere only with TLS or by express wish; ports and sockets."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.agent.test_consoles import hear
from tests.api.served import served
from tests.api.test_cli_console import piped
from tests.api.test_console import running
from twinshare.agent.config import ApiConfig, ConfigError
from twinshare.api.rest_client import RESTClient
from twinshare.api.server import CannotListen, listening


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """The files of a self-signed certificate for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert), str(private)


@pytest.mark.parametrize("where", ["0.0.0.0:0", "[::]:0", ":0"])
def test_beyond_loopback_asks_for_tls(where: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"api\.tls_cert and api\.tls_key, or set api\.insecure"),
        listening(ApiConfig(listen=where)),
    ):
        pass
    with listening(ApiConfig(listen=where, insecure=True)) as at:
        assert at.url.startswith(("http://127.0.0.1:", "http://[::1]:"))


@pytest.mark.parametrize("where", ["", "8080", "localhost:", "localhost:x", "localhost:99999", "no such host:1"])
def test_what_is_no_address(where: str) -> None:
    with pytest.raises(ConfigError, match="not HOST:PORT"), listening(ApiConfig(listen=where)):
        pass


def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(CannotListen, match=f"{where}: the port is in use.*--api"),
            listening(ApiConfig(listen=where)),
        ):
            pass


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    missing = ApiConfig(listen="127.0.0.1:0", tls_cert=str(tmp_path / "none"), tls_key=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="cannot be used"), listening(missing):
        pass


async def test_tls(tmp_path: Path, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    async with served(tmp_path, listen="localhost:0", tls_cert=cert, tls_key=key) as api:
        assert api.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=cert)
        url = api.url.replace("127.0.0.1", "localhost")
        async with httpx.AsyncClient(base_url=url, verify=trusting, trust_env=False) as client:
            assert (await client.get("/api/vm")).json() == {"vms": []}
            own = await client.post("/api/p2p/stop", headers={"origin": url})
            assert own.status_code == 200
            plain = await client.post("/api/p2p/stop", headers={"origin": url.replace("https", "http")})
            assert plain.status_code == 403
        heard = await trio.to_thread.run_sync(api.raw, b"GET /api/vm HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" not in heard


async def test_a_console_over_tls_and_over_a_unix_socket(tmp_path: Path, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    said = bytes(range(14, 256)) * 2000
    kinds: list[dict[str, str]] = [
        {"listen": "localhost:0", "tls_cert": cert, "tls_key": key},
        {"listen": f"unix:{tmp_path}/api.sock"},
    ]
    for number, kind in enumerate(kinds):
        async with running(tmp_path / str(number), **kind) as (api, _, _id):
            url = api.url.replace("127.0.0.1", "localhost")
            trusting = ssl.create_default_context(cafile=cert)
            async with RESTClient(url, verify=trusting) as client, client.console("one") as console:
                await console.send(said)
                assert await hear(console, len(said)) == said
            shown, _ = await piped(url, "one", "--for", "0.5", typed=said, more={"SSL_CERT_FILE": cert})
            assert shown == said


async def test_a_unix_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with served(tmp_path / "node", listen=f"unix:{path}") as api:
        assert api.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/api/vm")).json() == {"vms": []}
        with pytest.raises(CannotListen, match="another server"), listening(ApiConfig(listen=f"unix:{path}")):
            pass
    assert not path.exists()
    # One that a killed server left behind is taken over.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(ApiConfig(listen=f"unix:{path}")):
        assert path.exists()


async def test_every_address_that_a_wildcard_serves(tmp_path: Path) -> None:
    async with served(tmp_path, listen="0.0.0.0:0", insecure=True) as api:
        port = api.address[1]
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/api/vm")).status_code == 200
            other = await client.get(f"http://127.0.0.3:{port}/api/vm")
            assert other.status_code == 200
