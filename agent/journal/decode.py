"""What the journal's rows mean: the request, the result and the caller of an operation of a former life or version."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec

from ...protocols.access import LOCAL, Caller, Role
from ...protocols.tolerant import decode_tolerantly
from .former_requests import convert_former_request
from .operation import JournalledOperation
from .store import Row


def former_caller(principal: str, role: Any) -> Caller:
    """Return who began an operation before a restart. Rows of the first version have no role: only `local` is admin."""
    known = role if role in list(Role) else Role.ADMIN if principal == LOCAL else Role.OPERATOR
    return Caller(principal=principal, role=Role(known))


def decode_stored(data: bytes | None, kind: Any) -> Any:
    """A stored result, as it stands where this version does not understand it."""
    if not data:
        return None
    try:
        return decode_tolerantly(data, kind)
    except (msgspec.MsgspecError, ValueError):
        return msgspec.msgpack.decode(data)


def decode_request(row: Row, kind: JournalledOperation[Any]) -> Any:
    """What was asked; None when this version does not understand it."""
    for request in (row.request, convert_former_request(row.kind, row.target, row.request)):
        with suppress(msgspec.MsgspecError, ValueError):
            if request is not None:
                return decode_tolerantly(request, kind.request_type())
    return None
