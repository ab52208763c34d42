"""Idempotency keys: each principal has a key space of its own, so that nobody is answered with another's operation.

The own users of nodes that are admins share one: a request that is repeated through another node is the same operation.
A key is kept with its space before it, but for the shared one, which is that of rows from before there were spaces.
"""

from __future__ import annotations

import uuid

from ...protocols.access import Caller, Role
from ...protocols.errors import InvalidRequest

_SEPARATOR = "\n"


def scoped_key(caller: Caller) -> str:
    """Return the key under which a call is kept; a new one where the caller has none. Raises: InvalidRequest."""
    key = caller.idempotency_key or uuid.uuid4().hex
    if _SEPARATOR in key:
        raise InvalidRequest("an idempotency key is one line", path="Idempotency-Key")
    own_user = ":" not in caller.principal
    return key if own_user and caller.role is Role.ADMIN else f"{caller.principal}{_SEPARATOR}{key}"


def plain_key(scoped: str) -> str:
    """Return the key as the caller gave it."""
    return scoped.rpartition(_SEPARATOR)[2]
