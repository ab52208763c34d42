"""Logins of docker's configuration: in the file, of credential helpers, as identity tokens."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import structlog

from tests.images.registry.servers import Exchange, Settings, no_pause, scripted
from twinshare.agent.images.registry import docker_config
from twinshare.agent.images.registry.auth import DOCKER_HUB, Credentials, docker_credentials
from twinshare.agent.images.registry.client import Repository, open_registry_client
from twinshare.protocols.errors import RegistryFailed

SECRET = "s3cr3t-of-the-helper"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of docker's configuration, where helpers are found too."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def configure(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def helper(folder: Path, name: str, script: str) -> None:
    path = folder / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


def answering(username: str, secret: str) -> str:
    """A helper that knows ghcr.io alone, and writes down how it was called."""
    answer = json.dumps({"ServerURL": "x", "Username": username, "Secret": secret})
    return (
        f'read server; echo "$# $1 $server" >>"$(dirname "$0")/calls"\n'
        f"[ \"$server\" = ghcr.io ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\necho '{answer}'"
    )


@pytest.mark.parametrize("config", [{"credHelpers": {"ghcr.io": "one"}}, {"credsStore": "one"}])
def test_a_helper_is_asked(docker: Path, config: dict[str, Any]) -> None:
    configure(docker, **config, auths={"ghcr.io": {}})
    helper(docker, "one", answering("bob", SECRET))
    assert docker_credentials("ghcr.io") == Credentials("bob", SECRET)
    assert (docker / "calls").read_text() == "1 get ghcr.io\n"
    assert docker_credentials("quay.io") is None


def test_a_registry_s_own_helper_goes_first_and_the_file_comes_last(docker: Path) -> None:
    auth = base64.b64encode(b"carl:of the file").decode()
    configure(docker, credHelpers={"ghcr.io": "one"}, credsStore="two", auths={"quay.io": {"auth": auth}})
    helper(docker, "one", answering("bob", SECRET))
    helper(docker, "two", "exit 1")
    assert docker_credentials("ghcr.io") == Credentials("bob", SECRET)
    assert docker_credentials("quay.io") == Credentials("carl", "of the file")
    configure(docker, auths={"https://index.docker.io/v1/": {"username": "dora", "password": "plain"}})
    assert docker_credentials(DOCKER_HUB) == Credentials("dora", "plain")


@pytest.mark.parametrize(
    "script",
    ["exit 0", "echo not json", "yes | head -c 1000000", f"echo '{{\"Username\": 5}}'; echo {SECRET} >&2; exit 1",
     "exec sleep 60", "sleep 60 & exec sleep 60"],
)  # fmt: skip
def test_a_helper_that_fails_ends_in_time_and_is_not_quoted(
    docker: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_config, "HELPER_TIMEOUT", 0.5)
    configure(docker, credsStore="bad")
    helper(docker, "bad", script)
    begun = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        assert docker_credentials("ghcr.io") is None
    assert time.monotonic() - begun < 5
    assert SECRET not in str(logs)


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "$(touch x)", "", "missing"])
def test_a_helper_is_a_name_and_nothing_else(docker: Path, name: str) -> None:
    configure(docker, credHelpers={"ghcr.io": name})
    with structlog.testing.capture_logs():
        assert docker_credentials("ghcr.io") is None
    assert [path.name for path in docker.iterdir()] == ["config.json"]


@pytest.mark.parametrize("where", ["file", "helper"])
async def test_an_identity_token_is_exchanged(docker: Path, where: str) -> None:
    asked: list[dict[str, list[str]]] = []

    async def handler(exchange: Exchange) -> None:
        if exchange.target == "/token":
            body = exchange.body
            while len(body) < int(exchange.headers["content-length"]):
                body += await exchange.stream.receive_some(65536)
            asked.append(parse_qs(body.decode()))
            assert exchange.method == "POST"
            assert "authorization" not in exchange.headers
            await exchange.answer(200, b'{"access_token": "good"}')
        elif exchange.headers.get("authorization") == "Bearer good":
            await exchange.answer(200)
        else:
            realm = f'realm="http://{exchange.headers["host"]}/token",service="here"'
            await exchange.answer(401, www_authenticate=f"Bearer {realm}")

    async with scripted(handler) as server:
        host = server.host
        if where == "file":
            configure(docker, auths={host: {"auth": base64.b64encode(b"bob:").decode(), "identitytoken": SECRET}})
        else:
            configure(docker, credsStore="one")
            helper(docker, "one", answering("<token>", SECRET).replace("ghcr.io", host))
        async with open_registry_client([Settings(host)], no_pause) as client:
            assert await client.has_blob(Repository(host, "a"), "sha256:" + "0" * 64)
    (form,) = asked
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == [SECRET]
    assert form["service"] == ["here"]
    assert form["scope"] == ["repository:a:pull,push"]


async def test_an_identity_token_is_no_password(docker: Path) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.answer(401, www_authenticate="Basic realm=x")

    async with scripted(handler) as server, open_registry_client([Settings(server.host)], no_pause) as client:
        configure(docker, auths={server.host: {"identitytoken": SECRET}})
        with pytest.raises(RegistryFailed, match="identity token") as caught:
            await client.has_blob(Repository(server.host, "a"), "sha256:" + "0" * 64)
        assert SECRET not in str(caught.value)
