"""Which start of a peer says HELLO: two nodes that run with one identity, as copies of a data directory do, take turns.

A node that starts anew has another instance, and the one before never comes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from .host import PeerId

MAX_PEERS = 4096
REMEMBERED = 8
"""Instances of a peer that are remembered."""
REPORTED_FOR = 3600.0
"""Seconds for which a copy is reported after it was last seen."""


class Instances:
    """The instances of each peer, in the order in which they came. Times are in seconds of a steady clock."""

    def __init__(self) -> None:
        self._seen: dict[PeerId, list[str]] = {}
        self._copied: dict[PeerId, float] = {}

    def observe(self, peer: PeerId, instance: str, now: float) -> None:
        """Take note of the instance in a HELLO; older versions have none."""
        if not instance or (peer not in self._seen and len(self._seen) >= MAX_PEERS):
            return
        seen = self._seen.setdefault(peer, [])
        if instance in seen[:-1]:
            self._copied[peer] = now
        if not seen or seen[-1] != instance:
            self._seen[peer] = [*(known for known in seen if known != instance), instance][-REMEMBERED:]

    def copied(self, now: float) -> Iterator[PeerId]:
        """Yield the peers whose identity two running nodes have."""
        yield from (peer for peer, at in self._copied.items() if now - at < REPORTED_FOR)
