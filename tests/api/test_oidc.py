"""Tokens of an identity provider: only those that prove everything they must."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from tests.api.served import served
from twinshare.agent.config import ConfigError, OidcConfig
from twinshare.api.rest.oidc import Authority
from twinshare.protocols.access import Role

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
        {"exp": NOW - 60}, {"exp": None}, {"exp": "later"}, {"nbf": NOW + 60}, {"twinshare_role": None},
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
