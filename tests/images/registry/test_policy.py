"""The one HTTP policy: Retry-After in both forms, reasons, redirects of every method, optional steps."""

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trio

from tests.images.registry.servers import Exchange, Settings, no_pause, scripted
from tests.ports import free_port
from twinshare.agent.images.registry.blob_cache import Wanted, cache_blob
from twinshare.agent.images.registry.client import Repository, once, open_registry_client
from twinshare.agent.images.registry.http_policy import PassingError, Retry, reason_of
from twinshare.agent.images.registry.manifest import ManifestList, choose_platform, decode_manifest
from twinshare.protocols.errors import RegistryFailed
from twinshare.protocols.operation import Progress

BODY = bytes(range(256)) * 20
DIGEST = hashlib.sha256(BODY).hexdigest()


def in_seconds(seconds: int) -> str:
    return str(seconds)


def as_date(seconds: int) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("form", [in_seconds, as_date])
async def test_retry_after_is_obeyed_up_to_a_minute(form: Callable[[int], str]) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def handler(exchange: Exchange) -> None:
        if not pauses:
            await exchange.answer(429, retry_after=form(40))
            return
        await exchange.answer(200, BODY)

    async with scripted(handler) as server, open_registry_client([server], sleep) as client:
        async for _ in client.web.stream(f"http://{server.host}/x", 0, None):
            pass
    assert len(pauses) == 1
    assert 38 <= pauses[0] <= 41


@pytest.mark.parametrize("form", [in_seconds, as_date])
async def test_a_longer_pause_is_named_and_not_waited_for(form: Callable[[int], str]) -> None:
    asked = 0

    async def handler(exchange: Exchange) -> None:
        nonlocal asked
        asked += 1
        body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}'
        await exchange.answer(429, body, retry_after=form(6 * 3600))

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        with pytest.raises(RegistryFailed, match=r"pull rate limit.*no request before \d{4}-.* UTC"):
            await client.manifest(Repository(server.host, "a"), "latest")
    assert asked == 1


async def test_the_token_server_is_asked_again_and_its_reason_given() -> None:
    answers = iter([(503, b""), (429, b""), (200, b'{"token": "good"}')])

    async def handler(exchange: Exchange) -> None:
        if exchange.target.startswith("/token"):
            status, body = next(answers, (403, b'{"details": "account suspended"}'))
            await exchange.answer(status, body)
            return
        if exchange.headers.get("authorization") == "Bearer good" and "/b/" not in exchange.target:
            await exchange.answer(200)
            return
        await exchange.answer(401, www_authenticate=f'Bearer realm="http://{exchange.headers["host"]}/token"')

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        assert await client.has_blob(Repository(server.host, "a"), f"sha256:{DIGEST}")
        with pytest.raises(RegistryFailed, match="account suspended"):
            await client.has_blob(Repository(server.host, "b"), f"sha256:{DIGEST}")


async def test_uploads_follow_redirects_and_a_refused_mount_is_no_failure() -> None:
    seen: list[str] = []

    async def handler(exchange: Exchange) -> None:
        seen.append(f"{exchange.method} {exchange.target.partition('?')[0]}")
        if exchange.method == "HEAD":
            await exchange.answer(404)
            return
        if "mount=" in exchange.target:
            await exchange.answer(403, b'{"errors":[{"code":"DENIED"}]}')
            return
        if exchange.target.startswith("/v2/"):
            await exchange.answer(307, location="/far/uploads")
            return
        if exchange.target == "/far/uploads":
            await exchange.answer(202, location="session")
            return
        if exchange.target.startswith("/far/session"):
            await exchange.answer(307, location="/far/store")
            return
        await exchange.answer(201)

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        repository = Repository(server.host, "a")
        assert await client.put_blob(repository, f"sha256:{DIGEST}", len(BODY), once(BODY), ["other"])
    assert seen[-4:] == ["POST /v2/a/blobs/uploads/", "POST /far/uploads", "PUT /far/session", "PUT /far/store"]


class Restarting:
    """A server that ends in its first GET and its first PUT, and is there again after nine pauses."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._pauses = 0
        self.reports: list[str] = []
        self.port = free_port()

    async def start(self) -> None:
        await self._nursery.start(self._serve, [False])

    async def sleep(self, seconds: float) -> None:
        assert seconds < 8
        self._pauses += 1
        if self._pauses == 9:
            await self._nursery.start(self._serve, [True])

    async def _serve(self, is_new: list[bool], task_status: trio.TaskStatus[None]) -> None:
        ended = trio.Event()

        async def handler(exchange: Exchange) -> None:
            if exchange.method in {"GET", "PUT"} and not is_new[0]:
                if exchange.method == "GET":
                    await exchange.answer(200, BODY[:1000], content_length=str(len(BODY)))
                ended.set()
            elif exchange.method == "GET":
                start = int(exchange.headers["range"].removeprefix("bytes=").partition("-")[0])
                await exchange.answer(206, BODY[start:], content_range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
            else:
                status = {"HEAD": 404, "POST": 202}.get(exchange.method, 201)
                await exchange.answer(status, location="/session")

        async with scripted(handler, self.port):
            task_status.started()
            await ended.wait()

    def report(self, progress: Progress) -> None:
        self.reports.append(progress.message)


@pytest.mark.parametrize("way", ["download", "upload"])
async def test_a_server_that_restarts_is_waited_for(way: str) -> None:
    async with trio.open_nursery() as nursery:
        server = Restarting(nursery)
        await server.start()
        host = f"127.0.0.1:{server.port}"
        async with open_registry_client([Settings(host)], server.sleep) as plain:
            client = plain.reporting(server.report)
            if way == "download":
                async with aclosing(client.web.stream(f"http://{host}/x", 0, len(BODY))) as parts:
                    assert b"".join([part async for part in parts]) == BODY
            else:
                assert await client.put_blob(Repository(host, "a"), f"sha256:{DIGEST}", len(BODY), once(BODY))
        nursery.cancel_scope.cancel()
    assert any("trying again" in message for message in server.reports)


async def test_a_known_server_that_stays_away_is_given_up_after_a_minute() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        assert sum(pauses) < 120

    async def attempt() -> None:
        raise PassingError("away", known=True)

    with pytest.raises(RegistryFailed, match="away; tried"):
        await Retry(sleep).run(attempt)
    assert 40 < sum(pauses) < 90


async def test_a_server_that_never_answered_is_given_up_soon() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    host = f"127.0.0.1:{free_port()}"
    async with open_registry_client([Settings(host)], sleep) as client:
        with pytest.raises(RegistryFailed, match="tried 5 times"):
            await client.manifest(Repository(host, "a"), "v1")
    assert len(pauses) == 4


async def test_the_reason_of_a_refusal_reaches_the_user() -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(400, b'{"errors":[{"code":"DENIED","message":"tag v1 is immutable"}]}')

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        with pytest.raises(RegistryFailed, match="tag v1 is immutable"):
            await client.manifest(Repository(server.host, "a"), "v1")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"errors": [{"code": "DENIED", "message": null, "detail": {"Class": 7}}]}', "DENIED"),
        (b'{"errors": [{"code": "A", "message": "no quota"}, {"code": 3, "message": "no tag"}]}', "no quota; no tag"),
        (b'{"errors": null, "message": "gone for good"}', "gone for good"),
        (b'{"error": {"code": 403, "message": "billing is off", "status": "PERMISSION_DENIED"}}', "billing is off"),
        (b'{"error": "invalid_scope", "error_description": "no such project"}', "no such project"),
        (b'{"detail": ["a", "b"]}', "a; b"),
        (b'{"message": 7, "error": "busy"}', "busy"),
        (b'{"errors": ' + b"[" * 30 + b"]" * 30 + b', "message": "deep"}', "deep"),
        (b'{"errors": ' + b"[" * 100_000, ""),
    ],
)
def test_a_reason_is_found_in_every_form_that_is_sent(body: bytes, reason: str) -> None:
    assert reason_of(body) == reason


def test_reasons_are_short_and_printable() -> None:
    assert reason_of(b"quota\x1b[2J exceeded") == "quota [2J exceeded"
    assert reason_of(b"<html>oops</html>") == ""
    assert reason_of(b"{broken") == ""
    assert len(reason_of(b"x" * 10_000)) <= 300


@pytest.mark.parametrize("left", [0, 1, 2000, len(BODY) - 1, len(BODY), len(BODY) + 7], ids=str)
@pytest.mark.parametrize("same", [True, False], ids=["of this", "of another"])
@pytest.mark.parametrize("size", [None, len(BODY)], ids=["size unknown", "size known"])
async def test_whatever_an_attempt_left_a_download_ends_well(
    tmp_path: Path, left: int, same: bool, size: int | None
) -> None:
    async def handler(exchange: Exchange) -> None:
        start = int(exchange.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start >= len(BODY):
            await exchange.answer(416)
            return
        if start:
            await exchange.answer(206, BODY[start:], content_range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
            return
        await exchange.answer(200, BODY)

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        wanted = Wanted("sha256", DIGEST, size, server.host)
        wanted.path(tmp_path).write_bytes((BODY + BODY)[:left] if same else bytes(left))
        counted: list[int] = []
        path = await cache_blob(
            wanted,
            tmp_path,
            lambda start: client.web.stream(f"http://{server.host}/x", start, size),
            limit=1 << 20,
            on_bytes=counted.append,
        )
        assert path.read_bytes() == BODY
        assert sum(counted) == len(BODY)


MANIFEST = (
    b'{"schemaVersion":2,%s"config":{"mediaType":"a","digest":"sha256:' + b"0" * 64 + b'","size":1},'
    b'"layers":[{"mediaType":"x","digest":"sha256:' + b"1" * 64 + b'","size":1,"annotations":null}],"annotations":null}'
)
OCI = b'"mediaType":"application/vnd.oci.image.manifest.v1+json",'


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/octet-stream; charset=utf-8", "text/plain", ""]
)
@pytest.mark.parametrize("named", [OCI, b""])
def test_a_manifest_with_a_general_type_and_nulls_is_read(content_type: str, named: bytes) -> None:
    found = decode_manifest(MANIFEST.replace(b"%s", named), content_type)
    assert not isinstance(found, ManifestList)
    assert found.annotations == found.layers[0].annotations == {}


def test_an_entry_without_platform_is_taken_only_where_none_fits() -> None:
    fits = (
        b'{"mediaType":"m","digest":"sha256:'
        + b"1" * 64
        + b'","size":1,"platform":{"architecture":"amd64","os":"linux"}}'
    )
    sbom = b'{"mediaType":"m","digest":"sha256:' + b"2" * 64 + b'","size":1,"platform":null}'
    index = b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}'
    both = decode_manifest(index.replace(b"%s", sbom + b"," + fits), "")
    assert isinstance(both, ManifestList)
    assert choose_platform(both, "amd64").digest.endswith("1")
    alone = decode_manifest(index.replace(b"%s", sbom), "application/json")
    assert isinstance(alone, ManifestList)
    assert choose_platform(alone, "amd64").digest.endswith("2")
