"""How a browser that cannot send a token gets in: a link that works once, for a minute, and turns into a cookie.

Kept in memory alone: a restarted agent asks for a new link. Secrets are kept as their hashes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

from ...protocols.access import Caller

LINK_LIFE = 60.0
SESSION_LIFE = 12 * 3600.0
KEPT = 256

_Kept = OrderedDict[bytes, tuple[Caller, float]]


class Sessions:
    """Links that were handed out, and the sessions they became. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._links: _Kept = OrderedDict()
        self._sessions: _Kept = OrderedDict()

    def invite(self, caller: Caller, now: float) -> str:
        """The secret of a link that lets a browser in as `caller`."""
        return _add(self._links, caller, now + LINK_LIFE)

    def enter(self, secret: str, now: float) -> str | None:
        """Turn a link's secret into a session's, once; None when it is unknown, used or too old."""
        caller, until = self._links.pop(_digest(secret), (None, 0.0))
        return _add(self._sessions, caller, now + SESSION_LIFE) if caller is not None and now <= until else None

    def find(self, secret: str, now: float) -> Caller | None:
        """Whose session it is."""
        caller, until = self._sessions.get(_digest(secret), (None, 0.0))
        return caller if now <= until else None


def _add(kept: _Kept, caller: Caller, until: float) -> str:
    secret = secrets.token_urlsafe(32)
    kept[_digest(secret)] = (caller, until)
    if len(kept) > KEPT:
        kept.popitem(last=False)
    return secret


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
