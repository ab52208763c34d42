"""JSON Web Signatures with the nodes' own keys: the one module that speaks joserfc for the mesh.

The algorithm is EdDSA over Ed25519, under the name that RFC 9864 gives it; no other is accepted. joserfc is loaded by
the first signature: a node that is alone needs none at its start.
"""

from __future__ import annotations

import functools
from base64 import urlsafe_b64encode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ...protocols.base58 import peer_id_of, public_key_of
from ...protocols.bounded.jws import check_jws

ALGORITHM = "Ed25519"


class Signer:
    """A node's key, made of its 32-byte seed, which is secret."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.peer_id = peer_id_of(_public_of(seed))

    def sign(self, payload: bytes) -> str:
        """The payload as compact JWS."""
        from joserfc import jws
        from joserfc.jwk import OKPKey

        key = OKPKey.import_key(_jwk(_public_of(self._seed), self._seed))
        return jws.serialize_compact({"alg": ALGORITHM, "kid": self.peer_id}, payload, key, [ALGORITHM])


@functools.lru_cache(maxsize=4096)
def open_token(token: str, signer: str) -> bytes:
    """The payload of a JWS if `signer` (a peer ID) has signed it. Raises: ValueError."""
    from joserfc import jws
    from joserfc.errors import JoseError
    from joserfc.jwk import OKPKey

    check_jws(token)
    key = OKPKey.import_key(_jwk(public_key_of(signer)))
    try:
        payload = jws.deserialize_compact(token, key, [ALGORITHM]).payload
    except JoseError as error:
        raise ValueError(f"{signer} has not signed it ({error})") from None
    return payload


def _public_of(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _jwk(public: bytes, seed: bytes | None = None) -> dict[str, str | list[str]]:
    jwk: dict[str, str | list[str]] = {"kty": "OKP", "crv": "Ed25519", "x": _base64(public)}
    return jwk if seed is None else jwk | {"d": _base64(seed)}


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
