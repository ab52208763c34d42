"""Compact JSON Web Signatures (RFC 7515): size and form of all three parts, before a library reads them.

The header of a token is read before anybody has shown a key; it says what the rest is, so it is small and flat.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode
from typing import Final

from .json import check_json

MAX_TOKEN: Final = 16_384
MAX_HEADER: Final = 4_096
MAX_HEADER_ELEMENTS: Final = 64
MAX_HEADER_DEPTH: Final = 4
MAX_CLAIMS_ELEMENTS: Final = 2_048
_PART: Final = re.compile(r"[A-Za-z0-9_-]*")


def read_jws_header(token: str) -> bytes:
    """Return the header of a token, a JSON object within the bounds. Nothing is verified. Raises: ValueError."""
    if len(token) > MAX_TOKEN:
        raise ValueError(f"a token of {len(token)} characters; {MAX_TOKEN} are allowed")
    part = token.partition(".")[0]
    if len(part) > MAX_HEADER:
        raise ValueError(f"the header of a token has {len(part)} characters; {MAX_HEADER} are allowed")
    header = _decode(part)
    if not (header.startswith(b"{") and header.endswith(b"}") and header.isascii()):
        raise ValueError("the header of a token is a JSON object")
    check_json(header, elements=MAX_HEADER_ELEMENTS, depth=MAX_HEADER_DEPTH)
    return header


def check_jws(token: str, *, claims: bool = False) -> None:
    """Check the form and the bounds of a token. Nothing is verified.

    `claims`: the payload is JSON, which a library reads at once (a JWT). Raises: ValueError.
    """
    read_jws_header(token)
    if token.count(".") != 2:
        raise ValueError("a token has three parts: a header, a payload and a signature")
    _, payload, signature = token.split(".")
    _decode(signature)
    if claims:
        check_json(_decode(payload), elements=MAX_CLAIMS_ELEMENTS)


def _decode(part: str) -> bytes:
    if not _PART.fullmatch(part):
        raise ValueError("a part of a token is not base64url")
    try:
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error as error:
        raise ValueError(f"a part of a token is not base64url: {error}") from None
