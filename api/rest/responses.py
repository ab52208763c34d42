"""What views and error handlers answer: JSON in one shape; lists from rows that are encoded once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from quart import Response

from ...protocols.errors import TwinshareError
from .errors import JSON, error_headers

_encode = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as JSON; bytes are JSON already."""
    body = value if isinstance(value, bytes) else _encode(value)
    return Response(body, status, dict(headers) if headers else None, content_type=JSON)


def error_response(error: TwinshareError) -> Response:
    """Return the documented error body, with the headers that its status calls for."""
    return json_response(error.to_wire(), error.status, error_headers(error))


class EncodedList:
    """A list body `{"<key>": [...]}`. A row that is the same object as in the last list is not encoded again."""

    def __init__(self, key: str) -> None:
        self._head = b'{"%s":[' % key.encode()
        self._rows: dict[int, tuple[Any, bytes]] = {}
        self._last: Sequence[msgspec.Struct] = ()
        self._body = self._head + b"]}"

    def encode(self, rows: Sequence[msgspec.Struct]) -> bytes:
        """Return the body. The last list's rows are kept alive, so no identity is used again."""
        if rows == self._last:
            return self._body
        self._last = rows
        known, self._rows = self._rows, {}
        parts = []
        for row in rows:
            kept = known.get(id(row)) or (row, _encode(row))
            self._rows[id(row)] = kept
            parts.append(kept[1])
        self._body = b"%s%s]}" % (self._head, b",".join(parts))
        return self._body
