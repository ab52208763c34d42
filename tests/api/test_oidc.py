"""Tokens of an identity provider: only those that prove everything they must."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from tests.agent.nodes import spec
from tests.api.served import TABLE, Served, served
from twinshare.agent.config import ConfigError, OidcConfig
from twinshare.api.rest.oidc import Authority
from twinshare.protocols.access import LOCAL_ADMIN, Role

KEY = ECKey.generate_key("P-256", {"kid": "one"})
OTHER = ECKey.generate_key("P-256", {"kid": "one"})
NOW = 1_700_000_000.0
GOOD: dict[str, Any] = {
    "iss": "https://id.example", "aud": "twinshare", "sub": "ada", "exp": NOW + 60, "twinshare_role": "operator",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> OidcConfig:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [KEY.as_dict(private=False)]}))
    return OidcConfig(issuer="https://id.example", audience="twinshare", jwks_file=str(keys))


def token(claims: dict[str, Any], key: Any = KEY, algorithm: str = "ES256") -> str:
    return jwt.encode({"alg": algorithm, "kid": "one"}, claims, key, algorithms=[algorithm])


def test_a_good_token(config: OidcConfig) -> None:
    caller = Authority(config).authenticate(token(GOOD), NOW)
    assert caller is not None
    assert (caller.principal, caller.role) == ("oidc:ada", Role.OPERATOR)


def test_the_highest_of_several_roles(config: OidcConfig) -> None:
    claims = GOOD | {"aud": ["other", "twinshare"], "twinshare_role": ["viewer", "admin", "unknown"]}
    caller = Authority(config).authenticate(token(claims), NOW)
    assert caller is not None
    assert caller.role is Role.ADMIN


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"}, {"iss": None}, {"aud": "other"}, {"aud": ["other"]}, {"aud": None},
        {"exp": NOW}, {"exp": 10**400}, {"exp": NOW - 60}, {"exp": None}, {"exp": "later"}, {"nbf": NOW + 60},
        {"twinshare_role": None},
        {"twinshare_role": "root"}, {"twinshare_role": []}, {"sub": ""}, {"sub": None}, {"sub": 7},
    ],
)  # fmt: skip
def test_claims_that_prove_nothing(wrong: dict[str, Any], config: OidcConfig) -> None:
    claims = {name: value for name, value in (GOOD | wrong).items() if value is not None}
    assert Authority(config).authenticate(token(claims), NOW) is None


def test_signatures_that_prove_nothing(config: OidcConfig) -> None:
    authority = Authority(config)
    good = token(GOOD)
    head, body, signature = good.split(".")
    none = "eyJhbGciOiJub25lIn0"
    symmetric = token(GOOD, OctKey.import_key(json.dumps(KEY.as_dict(private=False))), "HS256")
    for forged in (
        token(GOOD, OTHER), f"{none}.{body}.", f"{none}.{body}.{signature}", symmetric, f"{head}.{body}.AAAA",
        f"{head}.{body[:-2]}AA.{signature}", "a.b.c", "..", "", good + "x" * 20_000, f"{head}.{body}",
    ):  # fmt: skip
        assert authority.authenticate(forged, NOW) is None, forged[:60]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"keys": [{"kty": "nope"}]}', "\xff"])
def test_keys_that_cannot_be_read(content: str, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"api\.oidc\.jwks_file"):
        Authority(OidcConfig(issuer="x", audience="y", jwks_file=str(file)))
    with pytest.raises(ConfigError, match=r"api\.oidc\.audience"):
        Authority(OidcConfig(issuer="x"))


async def test_over_http(config: OidcConfig, tmp_path: Path) -> None:
    async with served(tmp_path, auth="token", oidc=config) as api:
        claims = GOOD | {"exp": time.time() + 60, "twinshare_role": "viewer"}
        headers = {"authorization": f"Bearer {token(claims)}"}
        assert (await api.client.get("/api/vm", headers=headers)).status_code == 200
        assert (await api.client.get("/api/tokens", headers=headers)).status_code == 403
        old = {"authorization": f"Bearer {token(claims | {'exp': time.time() - 60})}"}
        assert (await api.client.get("/api/vm", headers=old)).status_code == 401


LIFE = 4
WEBSOCKET = (
    "connection: Upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="
)
OPENED = {"/api/events": "connection: close", "/api/vm/one/console": WEBSOCKET, "/api/vm/one/screen": WEBSOCKET}


def bearer(life: float) -> str:
    return f"Bearer {token(GOOD | {'exp': time.time() + life, 'twinshare_role': 'admin'})}"


async def end_of(api: Served, path: str, credential: str, more: str) -> float:
    """Open a stream with a header, and return when it ended (seconds since 1970)."""
    async with await trio.open_tcp_stream(*api.address) as stream:
        head = f"GET {path} HTTP/1.1\r\nhost: {api.address[0]}\r\n{credential}\r\n{more}\r\n\r\n"
        await stream.send_all(head.encode())
        assert (await stream.receive_some()).startswith((b"HTTP/1.1 200", b"HTTP/1.1 101"))
        with trio.fail_after(30):
            while await stream.receive_some():
                pass
        return time.time()


@pytest.mark.parametrize("through_a_page", [False, True])
async def test_what_a_jwt_opened_ends_with_it(through_a_page: bool, config: OidcConfig, tmp_path: Path) -> None:
    """The same of the browser's session that it opened."""
    async with served(tmp_path, auth="token", oidc=config) as api:
        await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec("one", start=True)})
        ends = time.time() + LIFE
        headers = {"authorization": bearer(LIFE)}
        if through_a_page:
            link = (await api.client.post("/api/session", headers=headers)).json()["link"]
            entered = await api.client.get(httpx.URL(link).path)
            headers = {"cookie": entered.headers["set-cookie"].partition(";")[0]}
            api.client.cookies.clear()
        ended: list[float] = []

        async def watch(path: str, more: str) -> None:
            ended.append(await end_of(api, path, "".join(f"{name}: {headers[name]}" for name in headers), more))

        async with trio.open_nursery() as nursery:
            for path, more in OPENED.items():
                nursery.start_soon(watch, path, more)
        assert all(-0.1 < at - ends < 10 for at in ended)
        assert (await api.client.get("/api/vm", headers=headers)).status_code == 401
