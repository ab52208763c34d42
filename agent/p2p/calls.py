"""Calls to peers, as the rest of the agent makes them: typed arguments in, typed results or typed errors out."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from ...protocols.access import Caller
from ...protocols.errors import DeadlineExceeded, InvalidRequest, PeerUnreachable, TooLarge, Unsupported
from ...protocols.messages import Request
from ...protocols.method import Method
from ...protocols.pages import MAX_ROWS
from ...protocols.session import MAX_TIMEOUT
from ..trace import current_trace
from .host import PeerId
from .peer_session import PeerSession

_UNKNOWN_FIELD = re.compile(r"contains unknown field `([^`]+)`")
"""What msgspec says of one, in the answers of former versions, which read their peers strictly."""
READ_TIMEOUT = 30.0
MUTATION_TIMEOUT = 4 * 3600.0
"""Seconds: a mutation may fetch an image first. A peer that dies meanwhile is noticed long before."""
GRACE = 1.0
"""Seconds that the owner gets to say itself that the deadline has passed."""


class PeerCalls:
    """Call peers. `session_to` returns the session with a peer, dialling if need be; `title` returns its name."""

    def __init__(
        self, session_to: Callable[[PeerId], Awaitable[PeerSession]], title: Callable[[PeerId], str] = lambda peer: peer
    ) -> None:
        self._session_to, self._title = session_to, title

    async def call(
        self,
        peer: PeerId,
        method: Method,
        arguments: Mapping[str, Any],
        caller: Caller,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Call `method` on `peer`. `timeout` is in seconds; by default a read has `READ_TIMEOUT` to spare.

        Cancelling ends a read over there; a mutation goes on as its operation, under the caller's idempotency key.
        Raises: what the owner raises; Detached; PeerUnreachable, PeerMisbehaved, DeadlineExceeded, P2pStopped.
        """
        key = caller.idempotency_key or (uuid.uuid4().hex if method.mutates else None)
        seconds = timeout if timeout is not None else _default_timeout(method, arguments)
        packed = msgspec.Raw(method.pack(arguments))
        request = Request(seconds, caller.role, key, caller.detach, 0, packed, caller.delegate, current_trace())
        with trio.move_on_after(seconds + GRACE):
            session = await self._session_to(peer)
            try:
                return await _ask(session, method, request)
            except PeerUnreachable as error:
                if session.error is None:  # the owner's own error, about a third node
                    raise
                raise self._lost(peer, method, key, error) from None
            except InvalidRequest as error:
                if (unknown := _UNKNOWN_FIELD.search(error.message)) is None:
                    raise
                raise self._too_old(peer, session.greeting.agent, unknown[1]) from None
        raise DeadlineExceeded(f"{self._title(peer)} did not answer {method.name} within {seconds:g} s", peer=peer)

    def _too_old(self, peer: PeerId, agent: str, field: str) -> Unsupported:
        """Return the error for a field that was added after the version of the peer, which refused the request."""
        runs = agent or "an older twinshare"
        sentence = f"{self._title(peer)} runs {runs} and does not know '{field}': leave it out, or upgrade that node"
        return Unsupported(sentence, peer=peer, field=field, agent=agent)

    def _lost(self, peer: PeerId, method: Method, key: str | None, error: PeerUnreachable) -> PeerUnreachable:
        sentence = f"the connection with {self._title(peer)} was lost during {method.name}: {error.message}"
        if not method.mutates:
            return PeerUnreachable(sentence, peer=peer)
        return PeerUnreachable(
            f"{sentence}; what was begun there goes on: repeat it with the same idempotency key to learn how it ends",
            peer=peer,
            idempotency_key=key,
        )


async def _ask(session: PeerSession, method: Method, request: Request) -> Any:
    if not method.lists:
        return await session.decoder.decode(await session.call(method.name, request), method.unpack_result)
    rows: list[Any] = []
    for page in await session.call_list(method.name, request):
        rows += await session.decoder.decode(page, method.unpack_result)
        if len(rows) > MAX_ROWS:
            raise TooLarge(f"the peer's list has more than {MAX_ROWS} rows", limit=MAX_ROWS)
        await trio.lowlevel.checkpoint()
    return rows


def _default_timeout(method: Method, arguments: Mapping[str, Any]) -> float:
    own = arguments.get("timeout")
    waits = float(own) if isinstance(own, int | float) else 0.0
    return min(waits + (MUTATION_TIMEOUT if method.mutates else READ_TIMEOUT), MAX_TIMEOUT)
