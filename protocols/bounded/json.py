"""JSON: how many values a document holds and how deep they nest, read from its brackets and commas.

Three bytes can be an empty list of sixty: a body of a mebibyte may become tens of them. No value is made here.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DEPTH: Final = 40
"""Levels of lists and objects: free-form data may have 32, within the few of a request."""
MAX_ELEMENTS: Final = 100_000
"""Values in one document."""

# Possessive, and an open string goes to the end: each byte is looked at once, whatever stands in it.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_PLAIN: Final = bytes(set(range(256)) - set(b"[]{},"))


class TooDeep(ValueError):
    """`member` is the member of the outermost object that nests too deep."""

    def __init__(self, message: str, member: str) -> None:
        super().__init__(message)
        self.member = member


def check_json(data: bytes, *, elements: int = MAX_ELEMENTS, depth: int = MAX_DEPTH) -> None:
    """Check the bounds of a document. What is cut or no JSON is left to the decoder.

    Raises: ValueError when it holds more than `elements` values or nests deeper than `depth`.
    """
    structure = _STRING.sub(b"", data).translate(None, _PLAIN)
    if structure.count(b",") + structure.count(b"[") + structure.count(b"{") > elements:
        raise ValueError(f"it holds more than {elements} values")
    level = 0
    for mark in structure.translate(None, b","):
        level += 1 if mark in b"[{" else -1
        if level > depth:
            raise TooDeep(f"it nests deeper than {depth} levels", _member(data, depth))


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
