"""Who is connected: the live connections of each peer, and the events that tell of changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...channels import LossyChannel
from ..host import MAX_EVENTS, Connection, Direction, PathKind, PeerEvent, PeerId
from .yamux.connection import YamuxConnection

SIMULTANEOUS = 5.0
"""Seconds within which two connections with a peer were made at the same time."""


@dataclass(frozen=True, eq=False, slots=True)
class Live:
    """A connection and what carries it."""

    muxer: YamuxConnection
    info: Connection


class Peers:
    """All live connections of the host `own`. A peer may have several: both sides dialled, or one is relayed."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._live: dict[PeerId, list[Live]] = {}
        self.events = LossyChannel[PeerEvent](MAX_EVENTS)

    def __iter__(self) -> Iterator[Live]:
        return iter([live for lives in self._live.values() for live in lives])

    def __len__(self) -> int:
        return sum(map(len, self._live.values()))

    def of(self, peer_id: PeerId) -> list[Live]:
        """The peer's connections, oldest first."""
        return list(self._live.get(peer_id, ()))

    def best(self, peer_id: PeerId) -> Live | None:
        """Return the newest direct connection, else the newest: an old one may be dead and not know it yet.

        Of two that were made at the same time, both ends choose the one that the lower peer ID has dialled.
        """
        lives = [live for live in self._live.get(peer_id, ()) if live.muxer.usable]
        direct = [live for live in lives if live.info.path is PathKind.DIRECT]
        newest = max((live.info.since for live in direct or lives), default=0.0)
        young = [live for live in direct or lives if live.info.since > newest - SIMULTANEOUS]
        return max(young, key=lambda live: (self._is_from_lower(live), live.info.since), default=None)

    def decides(self, peer_id: PeerId) -> bool:
        """Return whether this end is the one that closes one of two connections."""
        return self._own < peer_id

    def dialled_by(self, peer_id: PeerId) -> Live | None:
        """Return a direct connection that the peer has made."""
        return next((live for live in self._direct(peer_id) if live.info.direction is Direction.INBOUND), None)

    def surplus(self, peer_id: PeerId) -> list[Live]:
        """Return the direct connections besides the best one."""
        best = self.best(peer_id)
        return [live for live in self._direct(peer_id) if live is not best]

    def _direct(self, peer_id: PeerId) -> list[Live]:
        lives = self._live.get(peer_id, ())
        return [live for live in lives if live.muxer.usable and live.info.path is PathKind.DIRECT]

    def _is_from_lower(self, live: Live) -> bool:
        return (live.info.direction is Direction.OUTBOUND) == (self._own < live.info.peer_id)

    def path(self, peer_id: PeerId) -> PathKind | None:
        paths = {live.info.path for live in self._live.get(peer_id, ())}
        return PathKind.DIRECT if PathKind.DIRECT in paths else next(iter(paths), None)

    def add(self, live: Live) -> None:
        before = self.path(live.info.peer_id)
        self._live.setdefault(live.info.peer_id, []).append(live)
        self._publish_path(live.info.peer_id, before)

    def remove(self, live: Live) -> None:
        peer_id = live.info.peer_id
        before = self.path(peer_id)
        self._live[peer_id].remove(live)
        if not self._live[peer_id]:
            del self._live[peer_id]
        self._publish_path(peer_id, before)

    def _publish_path(self, peer_id: PeerId, before: PathKind | None) -> None:
        path = self.path(peer_id)
        if path is not before:
            self.events.publish(PeerEvent(peer_id=peer_id, path=path))
