"""Bearer tokens: 256 random bits, kept as SHA-256, compared in constant time, with a role and an end."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import trio

from ..protocols.access import Caller, Role
from ..protocols.errors import Conflict, TokenNotFound, Unauthenticated
from ..protocols.node import Token, TokenRequest
from ..protocols.tolerant import known_part
from .database import PASSING_FAULTS
from .state import State

USE_WRITTEN_EVERY = 60.0
PREFIX = "token:"
# The name under which the node's own command line appears; its token lies in a file, not in the table.
OWN = "admin"


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    hash: bytes
    role: Role
    created_at: float
    expires_at: float | None
    last_used_at: float | None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


class TokenStore:
    """Made by `open_tokens`. Every row is in memory, so that a request needs no disk."""

    def __init__(self, state: State, rows: Sequence[_Row], own_secret: str) -> None:
        self._state = state
        self._rows = {row.name: row for row in rows}
        self._own = hashlib.sha256(own_secret.encode()).digest()
        self._unwritten: set[str] = set()
        # Those whose rows could not be deleted yet.
        self._revoked: dict[str, _Row] = {}
        self._opened: defaultdict[str, dict[trio.CancelScope, trio.lowlevel.Task]] = defaultdict(dict)

    def authenticate(self, secret: str) -> Caller | None:
        """Who holds this token now; None for a token that is unknown, revoked or has ended.

        Every row is compared, so that the time taken tells nothing.
        """
        digest = hashlib.sha256(secret.encode(errors="surrogatepass")).digest()
        found: Caller | None = None
        if hmac.compare_digest(digest, self._own):
            found = Caller(principal="local", role=Role.ADMIN)
        now = time.time()
        for row in self._rows.values():
            if hmac.compare_digest(digest, row.hash) and (row.expires_at is None or now < row.expires_at):
                found = Caller(principal=PREFIX + row.name, role=row.role)
                self._note_use(row, now)
        return found

    def holds(self, principal: str, until: float | None = None) -> bool:
        """Return whether the credential of a principal is good: neither a revoked token, nor one at its end.

        `until` is that of the `Caller`.
        """
        if not principal.startswith(PREFIX):
            return until is None or time.time() < until
        row = self._rows.get(principal.removeprefix(PREFIX))
        return row is not None and (row.expires_at is None or time.time() < row.expires_at)

    @contextmanager
    def bound(self, caller: Caller) -> Iterator[None]:
        """Run a block (a request, a stream, a console) for as long as the token that opened it is good.

        Revoking the token, and its end, cancel the block at once, but for the request that revokes its own token.
        Raises: Unauthenticated then.
        """
        if not caller.principal.startswith(PREFIX):
            with _ending_at(caller.until):
                yield
            return
        name = caller.principal.removeprefix(PREFIX)
        row = self._rows.get(name)
        if row is None:
            raise _ended()
        with _ending_at(row.expires_at) as scope:
            self._opened[name][scope] = trio.lowlevel.current_task()
            try:
                yield
            finally:
                del self._opened[name][scope]
                if not self._opened[name]:
                    del self._opened[name]

    def _note_use(self, row: _Row, now: float) -> None:
        if row.last_used_at is None or now - row.last_used_at > USE_WRITTEN_EVERY:
            self._rows[row.name] = replace(row, last_used_at=now)
            self._unwritten.add(row.name)

    async def flush(self) -> None:
        """Write down revocations that could not be written, and when tokens were last used.

        It is tried again at the next call while the database cannot be written.
        """
        with suppress(*PASSING_FAULTS):
            for name in list(self._revoked):
                await self._delete(name)
        uses = {name: self._rows[name].last_used_at for name in self._unwritten if name in self._rows}
        self._unwritten.clear()
        rows = [(at, name) for name, at in uses.items()]
        if not rows:
            return
        try:
            await self._state.transact(
                lambda db: db.executemany("UPDATE tokens SET last_used_at = ? WHERE name = ?", rows) and None
            )
        except PASSING_FAULTS:
            self._unwritten |= uses.keys()

    async def create(self, request: TokenRequest) -> Token:
        """Raises: Conflict when the name is taken."""
        if request.name in self._rows or request.name == OWN:
            raise Conflict(f"a token named '{request.name}' exists; revoke it first or choose another name")
        secret = secrets.token_urlsafe(32)
        now = time.time()
        ends = now + request.expires_in if request.expires_in else None
        row = _Row(request.name, hashlib.sha256(secret.encode()).digest(), request.role, now, ends, None)
        await self._state.execute(
            "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, NULL)", (row.name, row.hash, str(row.role), now, ends)
        )
        self._rows[row.name] = row
        self._revoked.pop(row.name, None)
        return _view(row, secret)

    async def revoke(self, name: str) -> Token:
        """Revoke a token: no request with it succeeds once this is called, and what it opened ends.

        Raises: TokenNotFound; InsufficientResources, Unavailable while that cannot be written, which is tried again
        by `flush` and by the next call.
        """
        row = self._rows.pop(name, None) or self._revoked.get(name)
        if row is None:
            raise TokenNotFound(f"no token named '{name}'", token=name)
        self._revoked[name] = row
        for scope, task in self._opened.get(name, {}).items():
            if task is not trio.lowlevel.current_task():
                scope.cancel()
        await self._delete(name)
        return _view(row)

    async def _delete(self, name: str) -> None:
        await self._state.execute("DELETE FROM tokens WHERE name = ?", (name,))
        self._revoked.pop(name, None)

    def list(self) -> Sequence[Token]:
        return [_view(row) for row in sorted(self._rows.values(), key=lambda row: row.name)]


@contextmanager
def _ending_at(until: float | None) -> Iterator[trio.CancelScope]:
    """Run a block until a time of the epoch, or until its scope is cancelled. Raises: Unauthenticated then."""
    left = float("inf") if until is None else until - time.time()
    with trio.CancelScope(deadline=trio.current_time() + left) as scope:
        yield scope
    if scope.cancelled_caught:
        raise _ended()


def _ended() -> Unauthenticated:
    return Unauthenticated("the token that opened this was revoked or has expired")


def _view(row: _Row, secret: str | None = None) -> Token:
    return Token(
        name=row.name,
        role=row.role,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        expires_at=_time(row.expires_at),
        last_used_at=_time(row.last_used_at),
        secret=secret,
    )


async def open_tokens(state: State, own_secret: str) -> TokenStore:
    """The node's tokens, read once."""
    rows = await state.query("SELECT name, hash, role, created_at, expires_at, last_used_at FROM tokens")
    return TokenStore(
        state, [_Row(row[0], row[1], Role(known_part(row[2], Role)), *row[3:]) for row in rows], own_secret
    )
