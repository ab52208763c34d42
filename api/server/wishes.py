"""What a request asks beside its body: to be repeatable, and not to wait for its end."""

from __future__ import annotations

import msgspec

from ...protocols.access import Caller
from ...protocols.table import Method
from .answer import printable
from .request import Request


def wishing(request: Request, method: Method) -> Caller:
    """The caller of an operation, with these wishes. Raises: InvalidRequest for a key that cannot be one."""
    caller = request.caller
    if not method.mutates:
        return caller
    key = request.headers.get(b"idempotency-key")
    detach = wants_detach(request)
    if key is None and not detach:
        return caller
    chosen = printable(key, "Idempotency-Key") if key is not None else None
    return msgspec.structs.replace(caller, idempotency_key=chosen, detach=detach)


def wants_detach(request: Request) -> bool:
    """Whether the client asked for the operation instead of its result (RFC 7240)."""
    wishes = request.headers.get(b"prefer", b"").lower().split(b",")
    return any(wish.partition(b";")[0].strip() == b"respond-async" for wish in wishes)
