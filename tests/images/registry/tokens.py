"""A token server for Debian's docker-registry, as the distribution's token specification tells.

Whoever knows the password may write; anybody may read what lies below `public/`.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from tests.images.registry.certificates import Key, certificate, elliptic, private_pem
from tests.images.registry.servers import PASSWORD, USER, Exchange, Settings, scripted

ISSUER, SERVICE = "the test's issuer", "the test's registry"
_LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class TokenServer:
    """Where it listens, what a registry must be configured with, and who asked for what."""

    settings: Settings
    key: Key
    algorithm: str
    root: bytes
    auth: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def token(self, user: str, scope: str, lifetime: float = 300) -> str:
        access = []
        for asked in scope.split():
            kind, name, wanted = asked.split(":")
            allowed = [action for action in wanted.split(",") if user or (action == "pull" and "public/" in name)]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": user, "aud": SERVICE, "jti": str(now), "iat": now - 1, "nbf": now - 1,
            "exp": int(now + lifetime), "access": access,
        }  # fmt: skip
        key = (RSAKey if self.algorithm == "RS256" else ECKey).import_key(private_pem(self.key))
        return jwt.encode(
            {"typ": "JWT", "alg": self.algorithm, **self._named()}, claims, key, algorithms=[self.algorithm]
        )

    def _named(self) -> dict[str, Any]:
        """How the registry finds the key: by its certificate, or by the name that all of them derive from it."""
        if self.algorithm == "RS256":
            return {"x5c": [base64.b64encode(self.root).decode()]}
        public = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        text = base64.b32encode(hashlib.sha256(public).digest()[:30]).decode()
        return {"kid": ":".join(text[start : start + 4] for start in range(0, len(text), 4))}

    async def answer(self, exchange: Exchange) -> None:
        query = parse_qs(urlsplit(exchange.target).query)
        login = exchange.headers.get("authorization", "")
        if query.get("service") != [SERVICE] or login not in {"", _LOGIN}:
            await exchange.answer(401)
            return
        (scope,) = query["scope"]
        user = USER if login else ""
        self.asked.append((user, scope))
        await exchange.answer(200, msgspec.json.encode({"token": self.token(user, scope), "expires_in": 300}))


def _written(folder: Path, pem: bytes) -> Path:
    folder.mkdir()
    (folder / "roots.pem").write_bytes(pem)
    return folder / "roots.pem"


@asynccontextmanager
async def token_server(folder: Path, algorithm: str) -> AsyncIterator[TokenServer]:
    """Its certificate lies in `folder`; `auth` is the registry's section of that name."""
    key: Key = rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else elliptic()
    root = certificate(key, ISSUER)
    roots = _written(folder, root.public_bytes(serialization.Encoding.PEM))

    async def handler(exchange: Exchange) -> None:
        await server.answer(exchange)

    async with scripted(handler) as settings:
        server = TokenServer(settings, key, algorithm, root.public_bytes(serialization.Encoding.DER))
        server.auth = (
            f'token: {{realm: \'http://{settings.host}/token\', service: "{SERVICE}", issuer: "{ISSUER}", '
            f"rootcertbundle: {roots}}}"
        )
        yield server
