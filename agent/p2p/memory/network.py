"""The network in memory: who is where, and what its links do. Every change takes effect at once.

A silent link loses nothing: bytes wait until it speaks again, as TCP's do, unless a host gives its peer up before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from ..host import PeerId
from .connection import Endpoint, MemoryConnection


class MemoryNetwork:
    """`delay` gives the seconds that bytes travel from one peer to another; replace it as you like."""

    def __init__(self, delay: Callable[[PeerId, PeerId], float] = lambda _from, _to: 0.0) -> None:
        self.delay = delay
        self.hosts: dict[str, Endpoint] = {}
        self.connections: list[MemoryConnection] = []
        self._cut: set[frozenset[PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._groups: dict[PeerId, int] = {}
        self._next_port = 1
        self.changed = trio.lowlevel.ParkingLot()

    def new_address(self) -> str:
        self._next_port += 1
        return f"/memory/{self._next_port}"

    def passes(self, one: PeerId, other: PeerId) -> bool:
        """Whether bytes move between the two."""
        return (
            frozenset((one, other)) not in self._cut
            and not self._frozen & {one, other}
            and self._groups.get(one) == self._groups.get(other)
        )

    def delay_now(self, source: PeerId, target: PeerId) -> float | None:
        return self.delay(source, target) if self.passes(source, target) else None

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Make the link between two peers silent."""
        self._cut.add(frozenset((one, other)))
        self._look_again()

    def freeze(self, peer: PeerId) -> None:
        """Make a peer fall silent to everybody, as SIGSTOP or a pulled cable does."""
        self._frozen.add(peer)
        self._look_again()

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Let only the peers of one group reach each other; whoever is not named is alone."""
        self._groups = {peer: number for number, group in enumerate(groups) for peer in group}
        self._look_again()

    def heal(self, *peers: PeerId) -> None:
        """End silence: of the sessions and freezes of `peers`, or of everything."""
        chosen = set(peers)
        self._cut = {pair for pair in self._cut if chosen and not pair & chosen}
        self._frozen = {peer for peer in self._frozen if chosen and peer not in chosen}
        if not chosen:
            self._groups = {}
        self._look_again()

    def drop(self, one: PeerId, other: PeerId) -> None:
        """Break the connections of two peers: both notice at once, and can dial again."""
        for connection in list(self.connections):
            if connection.joins(one, other):
                connection.break_off()

    def _look_again(self) -> None:
        for connection in list(self.connections):
            connection.look_again()
        self.changed.unpark_all()
