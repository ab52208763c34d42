"""Who is connected: the live connections of each peer, and the events that tell of changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...channels import LossyChannel
from ..host import MAX_EVENTS, Connection, PathKind, PeerEvent, PeerId
from .yamux.connection import YamuxConnection


@dataclass(frozen=True, eq=False, slots=True)
class Live:
    """A connection and what carries it."""

    muxer: YamuxConnection
    info: Connection


class Peers:
    """All live connections. A peer may have several: both sides dialled at once, or one is relayed."""

    def __init__(self) -> None:
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
        """The newest direct connection, else the newest: an old one may be dead and not know it yet."""
        lives = [live for live in self._live.get(peer_id, ()) if live.muxer.usable]
        direct = [live for live in lives if live.info.path is PathKind.DIRECT]
        return max(direct or lives, key=lambda live: live.info.since, default=None)

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
