"""Circuit relay v2 and DCUtR: how nodes behind NAT reach each other, first through a member, then directly.

Each node relays for the members that are connected with it (`hop`), keeps reservations at up to two members that it
could dial (`reservations`), and turns a relayed connection into a direct one where the routers allow it (`punch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...addresses import Address
from .circuit import HOP, STOP
from .hop import Hop
from .punch import DCUTR, Punch
from .reservations import Reservations

if TYPE_CHECKING:
    from ..host import LibP2pHost


class Relaying:
    """Made by `open_relaying`. Its tasks live in the host's nursery."""

    def __init__(self, host: LibP2pHost) -> None:
        self.hop = Hop(host)
        self.reservations = Reservations(host)
        self.punch = Punch(host)

    @property
    def addresses(self) -> list[Address]:
        """Where we can be dialled through relays."""
        return self.reservations.addresses


def open_relaying(host: LibP2pHost) -> Relaying:
    relaying = Relaying(host)
    host.serve(HOP, relaying.hop.handle)
    host.serve(STOP, relaying.reservations.handle)
    host.serve(DCUTR, relaying.punch.handle)
    host.dialer.relayed = relaying.reservations.dial
    host.swarm.adopted += [relaying.reservations.consider, relaying.punch.consider]
    host.introductions.listeners.append(relaying.punch.learn)
    host.swarm.nursery.start_soon(relaying.reservations.run)
    return relaying
