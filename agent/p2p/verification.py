"""Signatures of statements that peers send: verified in batches off the event loop, within a budget for each peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import structlog
import trio

from ...protocols.errors import Forbidden, RateLimited
from ...protocols.membership.statements import Statement, read_certificate, read_revocation
from ...protocols.mesh import GossipUpdate
from .host import PeerId
from .signing import open_token

log = structlog.get_logger(__name__)
BUDGET = 4000
"""Signatures of one peer that are verified at once, at most."""
REFILL = 50.0
"""Signatures a second that its budget grows by."""
BAD_SIGNATURE = 20
"""What a token that does not verify costs of the budget."""
MAX_SOURCES = 1024

Offload: TypeAlias = Callable[[Callable[[], list[Statement]]], Awaitable[list[Statement]]]


async def in_thread(read: Callable[[], list[Statement]]) -> list[Statement]:
    """Run in a worker thread."""
    return await trio.to_thread.run_sync(read)


async def in_place(read: Callable[[], list[Statement]]) -> list[Statement]:
    """Run here: for a virtual clock, which must not run ahead of a thread."""
    await trio.lowlevel.checkpoint()
    return read()


@dataclass(slots=True)
class _Budget:
    left: float
    at: float


class Verifier:
    """Read the statements of gossip updates. `now` is in seconds of the epoch."""

    def __init__(self, offload: Offload, now: Callable[[], float]) -> None:
        self._offload, self._now = offload, now
        self._budgets: dict[PeerId, _Budget] = {}

    async def read(self, update: GossipUpdate, known: Iterable[str], source: PeerId | None) -> list[Statement]:
        """Return the statements of an update that verify, but for the tokens that are known.

        Raises: RateLimited when `source` has sent more than its budget.
        """
        seen = set(known)
        certificates = [t for t in dict.fromkeys(t for chain in update.members for t in chain) if t not in seen]
        revocations = [t for t in dict.fromkeys(r.token for r in update.revocations) if t not in seen]
        chains = dict.fromkeys(t for r in update.revocations for t in r.chain)
        certificates += [t for t in chains if t not in seen and t not in certificates]
        count = len(certificates) + len(revocations)
        if not count:
            return []
        self._spend(source, count)
        found = await self._offload(lambda: _read(certificates, revocations))
        self._spend(source, (count - len(found)) * BAD_SIGNATURE, refuse=False)
        return found

    def _spend(self, source: PeerId | None, count: int, *, refuse: bool = True) -> None:
        if source is None or not count:
            return
        now = self._now()
        if source not in self._budgets and len(self._budgets) >= MAX_SOURCES:
            del self._budgets[next(iter(self._budgets))]
        budget = self._budgets.setdefault(source, _Budget(BUDGET, now))
        budget.left = min(BUDGET, budget.left + max(0.0, now - budget.at) * REFILL)
        budget.at = now
        if refuse and budget.left < count:
            wait = int((count - budget.left) / REFILL) + 1
            raise RateLimited(f"more statements than this node verifies; try again in {wait} s", retry_after=wait)
        budget.left -= count


def _read(certificates: Iterable[str], revocations: Iterable[str]) -> list[Statement]:
    found: list[Statement] = []
    for tokens, read in ((certificates, read_certificate), (revocations, read_revocation)):
        for token in tokens:
            try:
                found.append(read(token, open_token))
            except Forbidden as error:
                log.debug("statement refused", reason=error.message)
    return found
