"""How a browser that cannot send a token gets in: a link that works once, for a minute, and turns into a cookie.

Kept in memory alone: a restarted agent asks for a new link. Secrets are kept as their hashes.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import trio

from ...protocols.access import Caller
from ...protocols.errors import NotFound, Unauthenticated

LINK_LIFE = 60.0
SESSION_LIFE = 12 * 3600.0
KEPT = 32
"""Links, and sessions, of one principal: whoever opens more loses its own oldest."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One browser's session. `until` is on trio's clock; `agent` is what the browser calls itself."""

    id: str
    caller: Caller
    until: float
    opened_at: datetime
    agent: str
    _streams: set[trio.CancelScope] = field(default_factory=set)

    @property
    def expires_at(self) -> datetime:
        return self.opened_at + timedelta(seconds=SESSION_LIFE)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Run a block that lasts (a stream, a console) until the session ends. Raises: Unauthenticated then."""
        scope = trio.CancelScope(deadline=self.until)
        self._streams.add(scope)
        try:
            with scope:
                yield
        finally:
            self._streams.discard(scope)
        if scope.cancelled_caught:
            raise Unauthenticated("the session that opened this has ended")

    def cut(self) -> None:
        """End what the session has opened."""
        for scope in self._streams:
            scope.cancel()


class Sessions:
    """Links that were handed out, and the sessions they became. Time is an argument, in seconds."""

    def __init__(self) -> None:
        self._links: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def invite(self, caller: Caller, now: float) -> str:
        """Return the secret of a link that lets a browser in as `caller`."""
        secret = secrets.token_urlsafe(32)
        self._links[_digest(secret)] = (caller, now + LINK_LIFE)
        self._links = OrderedDict((key, link) for key, link in self._links.items() if now <= link[1])
        own = [key for key, (other, _) in self._links.items() if other.principal == caller.principal]
        for key in own[:-KEPT]:
            del self._links[key]
        return secret

    def enter(self, secret: str, now: float, agent: str = "") -> str | None:
        """Turn a link's secret into a session's, once; None when it is unknown, used or too old."""
        caller, until = self._links.pop(_digest(secret), (None, 0.0))
        if caller is None or now > until:
            return None
        cookie = secrets.token_urlsafe(32)
        opened_at = datetime.now(UTC).replace(microsecond=0)
        self._sessions[_digest(cookie)] = Session(secrets.token_hex(8), caller, now + SESSION_LIFE, opened_at, agent)
        for key in [key for key, session in self._sessions.items() if now > session.until]:
            self._sessions.pop(key).cut()
        own = [key for key, session in self._sessions.items() if session.caller.principal == caller.principal]
        for key in own[:-KEPT]:
            self._sessions.pop(key).cut()
        return cookie

    def find(self, secret: str, now: float) -> Session | None:
        """Return the session of a cookie."""
        session = self._sessions.get(_digest(secret))
        return session if session is not None and now <= session.until else None

    def list(self, now: float) -> Sequence[Session]:
        """Return the sessions that have not ended, oldest first."""
        return [session for session in self._sessions.values() if now <= session.until]

    def end(self, id: str) -> Session:
        """End a session, and what it has opened. Raises: NotFound."""
        digest = next((digest for digest, session in self._sessions.items() if session.id == id), None)
        if digest is None:
            raise NotFound(f"there is no session '{id}'")
        session = self._sessions.pop(digest)
        session.cut()
        return session


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
