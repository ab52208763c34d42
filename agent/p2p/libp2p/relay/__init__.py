"""Circuit relay v2 and DCUtR: how nodes behind NAT reach each other, first through a member, then directly.

Each node relays for the members that are connected with it (`hop`), keeps reservations at up to two members that it
could dial (`reservations`), and turns a relayed connection into a direct one where the routers allow it (`punch`).
"""

from __future__ import annotations

from ..dialer import Dialer
from ..identify import Introductions
from ..listener import Listeners
from ..serving import Served
from ..swarm import Swarm
from .circuit import HOP, STOP
from .hop import Hop
from .punch import DCUTR, Punch
from .reservations import Reservations

__all__ = ["Relaying"]


class Relaying:
    """The relay services of a host, built on its swarm. Their tasks run in the swarm's nursery."""

    def __init__(self, swarm: Swarm, dialer: Dialer, listeners: Listeners, introductions: Introductions) -> None:
        self.hop = Hop(swarm, listeners)
        self.reservations = Reservations(swarm, dialer)
        self.punch = Punch(swarm, listeners)
        for protocol, part in ((HOP, self.hop), (STOP, self.reservations), (DCUTR, self.punch)):
            swarm.serving.add(protocol, Served(part.handle, guests=False))
        swarm.on_connection(self.reservations.consider)
        swarm.on_connection(self.punch.consider)
        introductions.subscribe(self.punch.learn)
        swarm.nursery.start_soon(self.reservations.run)
