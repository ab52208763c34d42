"""The bounds of a host. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...limits import LIMITS
from .yamux.session import SessionLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """`peer_timeout`: a peer that is silent for so long is gone. `write_timeout`: so long a write may move nothing.

    `half_open` counts connections whose far side has not proved who it is, `half_open_each` those of one address.
    A guest that has not become a member within `guest_time` is disconnected; one that has named a ticket gives its
    place to no stranger for `join_time`. `relay`: relay for members, be reachable
    through them, and turn relayed connections into direct ones.
    """

    relay: bool = False

    peer_timeout: float = 15.0
    upgrade_deadline: float = 5.0
    negotiation_deadline: float = 10.0
    dial_stagger: float = 0.1
    dial_addresses: int = 16
    connections: int = 300
    connections_each: int = LIMITS.connections
    guests: int = 32
    guest_time: float = 30.0
    join_time: float = 3.0
    guest_streams: int = 4
    half_open: int = 256
    half_open_each: int = LIMITS.half_open
    session: SessionLimits = field(default_factory=SessionLimits)

    @property
    def write_timeout(self) -> float:
        return self.peer_timeout
