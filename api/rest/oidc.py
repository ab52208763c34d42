"""Bearer tokens of an identity provider: JWTs, verified with the provider's keys from a file.

Only asymmetric signatures count, and a token must name its issuer, its audience, its end and one of our roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...agent.config import ConfigError, OidcConfig
from ...protocols.access import Caller, Role
from ...protocols.bounded.jws import check_jws

ALGORITHMS = ["EdDSA", "Ed25519", "ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
# Seconds by which the provider's clock may be ahead of ours. A token's end is taken as it stands.
LEEWAY = 30
_LATEST = 1 << 53


class Authority:
    """One identity provider. Raises: ConfigError when its keys cannot be read."""

    def __init__(self, config: OidcConfig) -> None:
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        self._config = config
        if not config.audience or not config.jwks_file:
            raise ConfigError("api.oidc.issuer needs api.oidc.audience and api.oidc.jwks_file beside it")
        try:
            self._keys = KeySet.import_key_set(_read(Path(config.jwks_file)))
        except (OSError, ValueError, KeyError, TypeError, JoseError) as error:
            raise ConfigError(f"api.oidc.jwks_file = {config.jwks_file}: no key set can be read: {error}") from None

    def authenticate(self, token: str, now: float) -> Caller | None:
        """Who the provider says holds this token at `now` (seconds since 1970); None when it proves nothing."""
        from joserfc import jwt
        from joserfc.errors import JoseError

        try:
            check_jws(token, claims=True)
            claims = jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError, KeyError, TypeError):
            return None
        return self._caller(claims) if self._holds(claims, now) else None

    def _holds(self, claims: dict[str, Any], now: float) -> bool:
        audience = claims.get("aud")
        expires, begins = claims.get("exp"), claims.get("nbf", 0)
        return (
            claims.get("iss") == self._config.issuer
            and self._config.audience in (audience if isinstance(audience, list) else [audience])
            and isinstance(expires, int | float)
            and expires < _LATEST
            and isinstance(begins, int | float)
            and begins - LEEWAY <= now < expires
        )

    def _caller(self, claims: dict[str, Any]) -> Caller | None:
        """The highest of our roles among what the role claim says, which may be a list."""
        said = claims.get(self._config.role_claim)
        said = said if isinstance(said, list) else [said]
        roles = [role for role in Role if role.value in said]
        subject = claims.get("sub")
        if not roles or not isinstance(subject, str) or not subject:
            return None
        return Caller(principal=f"oidc:{subject[:200]}", role=roles[-1], until=float(claims["exp"]))


def _read(file: Path) -> Any:
    import json

    return json.loads(file.read_bytes())
