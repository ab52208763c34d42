"""JSON: how many values a document holds and how deep they nest, read from its brackets and commas.

Three bytes can be an empty list of sixty: a body of a mebibyte may become tens of them. No value is made here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

MAX_DEPTH: Final = 40
"""Levels of lists and objects: free-form data may have 32, within the few of a request."""
MAX_ELEMENTS: Final = 100_000
"""Values in one document."""

# Possessive, and an open string goes to the end: each byte is looked at once, whatever stands in it.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_PLAIN: Final = bytes(set(range(256)) - set(b"[]{},"))


class BadMember(ValueError):
    """`member` is the one at fault: that of the outermost object which nests too deep, or one that is there twice."""

    def __init__(self, message: str, member: str) -> None:
        super().__init__(message)
        self.member = member


def check_json(data: bytes, *, elements: int = MAX_ELEMENTS, depth: int = MAX_DEPTH) -> None:
    """Check the bounds of a document. What is cut or no JSON is left to the decoder.

    Raises: ValueError when it holds more than `elements` values; BadMember when it nests deeper than `depth`.
    """
    structure = _STRING.sub(b"", data).translate(None, _PLAIN)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > elements:
        raise ValueError(f"it holds more than {elements} values")
    level = 0
    for mark in structure.translate(None, b","):
        level += 1 if mark in b"[{" else -1
        if level > depth:
            raise BadMember(f"it nests deeper than {depth} levels", _member(data, depth))


def check_single_members(data: bytes) -> None:
    """Check that no object of a document has a member twice: decoders differ in which of the two they take.

    The document is known to be JSON within bounds. Raises: BadMember.
    """
    if data.count(b":") > 1:
        _MEMBERS.decode(data.decode())


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise BadMember("is there twice", name)


# Numbers are left as text: one of a million digits takes long to convert.
_MEMBERS: Final = json.JSONDecoder(
    object_pairs_hook=_check_pairs, parse_int=len, parse_float=len, parse_constant=len, strict=False
)


def _member(data: bytes, depth: int) -> str:
    """The name of the member of the outermost object that nests deeper, empty when there is none."""
    level, member = 0, b""
    for token in _TOKEN.finditer(data):
        mark = token[0]
        if mark.startswith(b'"'):
            if level == 1 and data[token.end() : token.end() + 32].lstrip().startswith(b":"):
                member = mark[1:-1]
        else:
            level += 1 if mark in b"[{" else -1
            if level > depth:
                break
    return member.decode(errors="replace")
