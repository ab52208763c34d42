"""The client against servers that misbehave: each fault has an end, a clear error, and costs no memory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.images.registry.servers import PASSWORD, USER, Exchange, Settings, no_pause, scripted
from twinshare.agent.images.registry import http_body
from twinshare.agent.images.registry import manifest as m
from twinshare.agent.images.registry.auth import find_credentials, parse_challenge
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.protocols.errors import ImageNotFound, RegistryFailed

# httpx leaves its own generators to the garbage collector when a body is not read to its end.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")

BODY = bytes(range(256)) * 4096
BLOB = m.Descriptor(media_type="x", digest=m.sha256(BODY), size=len(BODY))
MANIFEST = m.Manifest(config=m.Descriptor(media_type=m.CONFIG, digest=m.sha256(b"{}"), size=2), layers=[BLOB])


async def read_all(parts: Any) -> bytes:
    async with aclosing(parts):
        return b"".join([bytes(part) async for part in parts])


def open_client(*settings: Settings) -> Any:
    return open_registry_client(settings, sleep=no_pause)


async def test_a_body_that_breaks_is_taken_up_where_it_broke() -> None:
    asked: list[str] = []

    async def handler(exchange: Exchange) -> None:
        asked.append(exchange.headers["range"])
        start = int(asked[-1].removeprefix("bytes=").partition("-")[0])
        rest = BODY[start:]
        await exchange.answer(
            206,
            rest[:300_000],
            content_length=str(len(rest)),
            content_range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}",
        )

    async with scripted(handler) as server, open_client(server) as client:
        assert await read_all(client.read(Repository(server.host, "a"), BLOB)) == BODY
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in asked]
    assert starts == sorted(set(starts)), "nothing is fetched twice"
    assert len(starts) == 4


async def test_a_server_without_ranges_is_read_from_the_start() -> None:
    answers = iter([BODY[:1000], BODY])

    async def handler(exchange: Exchange) -> None:
        await exchange.answer(200, next(answers), content_length=str(len(BODY)))

    async with scripted(handler) as server, open_client(server) as client:
        assert await read_all(client.read(Repository(server.host, "a"), BLOB)) == BODY


def plain(body: bytes, **headers: str) -> Callable[[Exchange], Any]:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(200, body, **headers)

    return handler


async def hang_up(exchange: Exchange) -> None:
    await exchange.stream.aclose()


async def chatter(exchange: Exchange) -> None:
    await exchange.stream.send_all(b"HTTP/1.1 200 x\r\n\r\n")
    while True:
        await exchange.stream.send_all(b"x" * 65536)


async def internal(exchange: Exchange) -> None:
    await exchange.answer(500)


async def busy(exchange: Exchange) -> None:
    await exchange.answer(429, retry_after="3")


async def unknown(exchange: Exchange) -> None:
    await exchange.answer(418)


async def login_for_ever(exchange: Exchange) -> None:
    await exchange.answer(401, www_authenticate='Basic realm="x"')


async def round_and_round(exchange: Exchange) -> None:
    await exchange.answer(302, location=exchange.target)


def redirect(location: str) -> Callable[[Exchange], Any]:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(307, location=location)

    return handler


FAULTS: dict[str, tuple[Callable[[Exchange], Any], str]] = {
    "hangs up": (hang_up, "tried 5 times"),
    "500": (internal, "answers 500; tried"),
    "429": (busy, "answers 429; tried"),
    "418": (unknown, "answers 418"),
    "another status line": (plain(b"", content_length="x"), "tried"),
    "401 for ever": (login_for_ever, "refuses access|wants a login"),
    "redirects for ever": (round_and_round, "redirects more than"),
    "redirects to loopback": (redirect("https://127.0.0.1:1/x"), "inside this network"),
    "redirects to the metadata service": (redirect("https://169.254.169.254/latest"), "inside this network"),
    "redirects to a name of loopback": (redirect("https://localhost/x"), "inside this network"),
    "redirects without encryption": (redirect("http://192.0.2.1/x"), "without encryption"),
    "redirects to a file": (redirect("file:///etc/passwd"), "without encryption"),
    "redirects to nowhere": (redirect("https://[::1/x"), "nowhere|none|Invalid URL"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("what", ["manifest", "blob"])
async def test_faults_end_in_a_clear_error(fault: str, what: str) -> None:
    handler, why = FAULTS[fault]
    async with scripted(handler) as server, open_client(server) as client:
        repository = Repository(server.host, "a")
        asked = client.manifest(repository, "latest") if what == "manifest" else read_all(client.read(repository, BLOB))
        with pytest.raises(RegistryFailed, match=why), trio.fail_after(20):
            await asked


@pytest.mark.parametrize(
    ("handler", "why"),
    [
        (plain(BODY[:-1] + b"x"), "other bytes"),
        (plain(BODY[:-1], content_length=str(len(BODY) - 1)), "ends too early"),
    ],
)
async def test_other_bytes_than_the_digest_are_refused(handler: Callable[[Exchange], Any], why: str) -> None:
    async with scripted(handler) as server, open_client(server) as client:
        with pytest.raises(RegistryFailed, match=why):
            await read_all(client.read(Repository(server.host, "a"), BLOB))


async def test_an_endless_body_is_cut_at_its_size() -> None:
    async with scripted(chatter) as server, open_client(server) as client:
        with pytest.raises(RegistryFailed, match="other bytes"):
            await read_all(client.read(Repository(server.host, "a"), BLOB))
        with pytest.raises(RegistryFailed, match="more than"):
            await client.manifest(Repository(server.host, "a"), "latest")


async def test_a_range_that_was_not_asked_for_is_refused() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(206, BODY, content_range=f"bytes 5-{len(BODY) + 4}/9999999")

    async with scripted(handler) as server, open_client(server) as client:
        with pytest.raises(RegistryFailed, match="another range"):
            await read_all(client.read(Repository(server.host, "a"), BLOB))


async def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_body, "SLOWEST_SECONDS", 0.05)

    async def handler(exchange: Exchange) -> None:
        await exchange.stream.send_all(f"HTTP/1.1 200 x\r\ncontent-length: {len(BODY)}\r\n\r\n".encode())
        while True:
            await exchange.stream.send_all(b"x")
            await trio.sleep(0.01)

    async with scripted(handler) as server, open_client(server) as client:
        with pytest.raises(RegistryFailed, match="stalled"), trio.fail_after(20):
            await read_all(client.read(Repository(server.host, "a"), BLOB))


async def test_no_transport_encoding_is_asked_for_and_none_undone() -> None:
    async def handler(exchange: Exchange) -> None:
        assert exchange.headers["accept-encoding"] == "identity"
        await exchange.answer(200, BODY, content_encoding="gzip")

    async with scripted(handler) as server, open_client(server) as client:
        assert await read_all(client.read(Repository(server.host, "a"), BLOB)) == BODY


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        ({"docker_content_digest": m.sha256(b"other")}, MANIFEST.encode(), "another manifest"),
        ({"content_type": "text/html"}, b"<html>", "cannot be read"),
        ({"content_type": m.INDEX}, MANIFEST.encode(), "says"),
        ({"content_type": m.MANIFEST}, b" " * (10 << 20), "more than"),
    ],
)
async def test_manifests_that_lie_are_refused(headers: dict[str, str], body: bytes, why: str) -> None:
    async with scripted(plain(body, **headers)) as server, open_client(server) as client:
        with pytest.raises(RegistryFailed, match=why):
            await client.manifest(Repository(server.host, "a"), "latest")


async def test_a_manifest_asked_for_by_digest_must_have_it() -> None:
    async with scripted(plain(MANIFEST.encode(), content_type=m.MANIFEST)) as server, open_client(server) as client:
        repository = Repository(server.host, "a")
        found = await client.manifest(repository, m.sha256(MANIFEST.encode()))
        assert found.manifest == MANIFEST
        with pytest.raises(RegistryFailed, match="another manifest"):
            await client.manifest(repository, m.sha256(b"other"))


async def test_what_is_not_there_is_not_found() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(404)

    async with scripted(handler) as server, open_client(server) as client:
        with pytest.raises(ImageNotFound):
            await client.manifest(Repository(server.host, "a"), "latest")
        assert not await client.has_blob(Repository(server.host, "a"), BLOB.digest)


async def test_a_server_that_is_not_there() -> None:
    async with open_client(Settings("127.0.0.1:1")) as client:
        with pytest.raises(RegistryFailed, match="cannot be reached"):
            await client.manifest(Repository("127.0.0.1:1", "a"), "latest")


async def test_credentials_stay_with_their_host() -> None:
    """They are not sent before they are asked for, nor along a redirect to another server."""
    seen: list[str | None] = []

    async def elsewhere(exchange: Exchange) -> None:
        seen.append(exchange.headers.get("authorization"))
        await exchange.answer(200, BODY)

    async with scripted(elsewhere) as other:

        async def registry(exchange: Exchange) -> None:
            if "authorization" not in exchange.headers:
                await exchange.answer(401, www_authenticate='Basic realm="x"')
            else:
                await exchange.answer(307, location=f"http://{other.host}/blob?signature=1")

        async with scripted(registry) as server:
            secret = Path(__file__).with_name("servers.py")
            known = Settings(server.host, username=USER, password_file=str(secret))
            async with open_client(known, other) as client:
                assert await read_all(client.read(Repository(server.host, "a"), BLOB)) == BODY
    assert seen == [None]


async def test_a_token_is_fetched_once_and_renewed_when_it_expires(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    asked: list[str] = []
    valid = "token-0"

    async def handler(exchange: Exchange) -> None:
        nonlocal valid
        url = httpx.URL(exchange.target)
        if url.path == "/token":
            expected = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            assert exchange.headers["authorization"] == f"Basic {expected}"
            asked.append(url.params["scope"])
            valid = f"token-{len(asked)}"
            await exchange.answer(200, json.dumps({"token": valid}).encode())
        elif exchange.headers.get("authorization") == f"Bearer {valid}":
            await exchange.answer(200, MANIFEST.encode(), content_type=m.MANIFEST)
        else:
            where = f"http://{exchange.headers['host']}/token"
            await exchange.answer(401, www_authenticate=f'Bearer realm="{where}",service="test"')

    async with scripted(handler) as server:
        known = Settings(server.host, username=USER, password_file=str(tmp_path / "password"))
        async with open_client(known) as client:
            for _ in range(3):
                await client.manifest(Repository(server.host, "org/a"), "latest")
            assert asked == ["repository:org/a:pull"]
            valid = "revoked"
            await client.manifest(Repository(server.host, "org/a"), "latest")
            assert len(asked) == 2


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="http://192.0.2.7/token"',
        'Bearer realm=""',
        "Bearer",
        'Bearer realm="file:///etc/passwd"',
        'Bearer realm="https://127.0.0.1:1/token"',
        "Negotiate",
        "",
    ],
)
async def test_a_login_is_not_taken_elsewhere(challenge: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)

    async def handler(exchange: Exchange) -> None:
        await exchange.answer(401, www_authenticate=challenge)

    async with scripted(handler) as server:
        known = Settings(server.host, username=USER, password_file=str(tmp_path / "password"))
        async with open_client(known) as client:
            with pytest.raises(RegistryFailed) as caught:
                await client.manifest(Repository(server.host, "a"), "latest")
            assert PASSWORD not in str(caught.value)


def test_challenges() -> None:
    both = parse_challenge('Basic realm="a", Bearer realm="https://x/t",service=y,scope="repository:a:pull,push"')
    assert both.scheme == "bearer"
    assert both.parameters == {"realm": "https://x/t", "service": "y", "scope": "repository:a:pull,push"}
    assert parse_challenge('basic realm="a b"').scheme == "basic"


def test_credentials_of_the_docker_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert find_credentials("ghcr.io", ()) is None
    for broken in ("", "[]", "{", '{"auths": 5}', '{"auths": {"ghcr.io": {"auth": "%%%"}}}'):
        (tmp_path / "config.json").write_text(broken)
        assert find_credentials("ghcr.io", ()) is None
    secret = base64.b64encode(b"bob:s:e").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"ghcr.io": {"auth": secret}}}))
    found = find_credentials("ghcr.io", ())
    assert found is not None
    assert (found.username, found.password) == ("bob", "s:e")
    assert "s:e" not in repr(found)
    assert find_credentials("quay.io", ()) is None
    missing = Settings("ghcr.io", username="x", password_file=str(tmp_path / "absent"))
    with pytest.raises(RegistryFailed, match="password_file"):
        find_credentials("ghcr.io", [missing])


def test_short_names_of_the_docker_hub() -> None:
    assert Repository.of("docker.io", "alpine") == Repository("registry-1.docker.io", "library/alpine")
    assert Repository.of("docker.io", "org/x") == Repository("registry-1.docker.io", "org/x")
    assert Repository.of("quay.io", "x") == Repository("quay.io", "x")
