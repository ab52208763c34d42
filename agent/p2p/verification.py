"""Signatures of statements that peers send: verified in batches off the event loop, within a budget for each peer."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import structlog

from ...protocols.errors import Forbidden
from ...protocols.membership.statements import Statement, read_certificate, read_revocation
from ...protocols.mesh import GossipUpdate, PeerRecord
from ..limits import LIMITS, Budget, Meter
from .host import PeerId
from .offload import Offload, Threads
from .records import verified
from .signing import open_token

log = structlog.get_logger(__name__)


class Verifier:
    """Read the statements of gossip updates, each source within its budget of `meter`."""

    def __init__(self, offload: Offload | None = None, meter: Meter | None = None) -> None:
        self._offload, self._meter = offload or Threads(), meter or Meter()

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
        if source is not None:
            self._meter.charge(source, Budget.STATEMENTS, count)
        found = await self._offload(lambda: _read(certificates, revocations))
        if source is not None and len(found) < count:
            self._meter.fine(source, Budget.STATEMENTS, (count - len(found)) * LIMITS.bad_statement)
        return found

    async def read_records(self, records: Collection[PeerRecord], source: PeerId) -> list[PeerRecord]:
        """Return what the subjects of records have signed. Raises: RateLimited when `source` has sent too many."""
        if not records:
            return []
        self._meter.charge(source, Budget.STATEMENTS, len(records))
        found = await self._offload(lambda: [record for each in records if (record := verified(each))])
        self._meter.fine(source, Budget.STATEMENTS, (len(records) - len(found)) * LIMITS.bad_statement)
        return found


def _read(certificates: Iterable[str], revocations: Iterable[str]) -> list[Statement]:
    found: list[Statement] = []
    for tokens, read in ((certificates, read_certificate), (revocations, read_revocation)):
        for token in tokens:
            try:
                found.append(read(token, open_token))
            except Forbidden as error:
                log.debug("statement refused", reason=error.message)
    return found
