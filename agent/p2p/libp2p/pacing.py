"""How much bulk may be on its way on a TCP connection, so that a call does not wait behind it in any queue.

The kernel tells what is under way, what has arrived and how long the shortest round trip was. Bulk is held to what the
path carries by itself, and a little that waits: so much that the rate is found out, so little that no call is late.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

QUEUED: Final = 0.008
"""Seconds of data that may wait on the way, or half a round trip where that is longer."""
FIRST: Final = 32 * 1024
MOST: Final = 4 * 1024 * 1024
"""Bytes that may be under way at first, and at most."""
FIRST_GROWTH, LATER_GROWTH = 2.0, 1.25
"""By how much more may be under way after an interval in which nothing waited: until a queue was seen, and after."""
INTERVAL: Final = 0.05
"""Seconds over which a rate is taken: the kernel's own, of single acknowledgements, is at times far too high."""
FIRST_INTERVAL: Final = 0.005
"""Seconds after which more may be under way, until a queue was seen, when all that was allowed has arrived."""
STALE: Final = 1.0
"""Seconds without bulk after which nothing is known of the path any more."""
LONGEST_PAUSE: Final = 0.02
SHORTEST_PAUSE: Final = 0.001
UNBOUNDED: Final = 1 << 20
TURN: Final = 0.004
"""Seconds of what has arrived after which other tasks have their turn: messages may be small, or of no byte."""
# Of struct tcp_info in linux/tcp.h: snd_mss and unacked; rtt; bytes_acked; notsent_bytes and min_rtt. Microseconds.
_COUNTS, _ROUND_TRIP = struct.Struct("=I4xI"), struct.Struct("=I")
_ACKED, _WAITING = struct.Struct("=Q"), struct.Struct("=II")
_SIZE: Final = 168


@dataclass(frozen=True, slots=True)
class PathState:
    """What the kernel knows of a connection; sizes in bytes, the present and the shortest round trip in seconds."""

    segment: int
    under_way: int
    acknowledged: int
    round_trip: float
    shortest: float


@dataclass(frozen=True, slots=True)
class BulkRoom:
    """Bytes of bulk that may be written now; where that is none, seconds until it is worth another look."""

    size: int
    pause: float = SHORTEST_PAUSE


NO_ROOM: Final = BulkRoom(0)


class BulkPacer:
    """Finds out how much a path takes: more while nothing waits on it, what it carries as soon as something does.

    That something waits is seen from the round trip alone. A rate that is low because this machine is busy holds nobody
    back. Times are given: it has no clock.
    """

    def __init__(self) -> None:
        self._allowed, self._growth = FIRST, FIRST_GROWTH
        self._since = -STALE
        self._acknowledged = 0

    def room(self, path: PathState, now: float) -> BulkRoom:
        """What may be written now."""
        elapsed = now - self._since
        if elapsed >= STALE:
            self._allowed, self._growth = max(FIRST, 2 * path.segment), FIRST_GROWTH
            self._since, self._acknowledged = now, path.acknowledged
        elif elapsed >= INTERVAL or (elapsed >= FIRST_INTERVAL and self._all_arrived(path)):
            self._allowed = self._look(path, elapsed)
            self._since, self._acknowledged = now, path.acknowledged
        room = self._allowed - path.under_way
        if room >= path.segment:
            return BulkRoom(room)
        pause = path.segment / self._allowed * (path.round_trip + QUEUED)
        return BulkRoom(0, min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE))  # crumbs would cost more than they carry

    def _all_arrived(self, path: PathState) -> bool:
        """As in TCP's slow start. A slow path is found out before: its queue lengthens the round trip."""
        return self._growth == FIRST_GROWTH and path.acknowledged - self._acknowledged >= self._allowed

    def _look(self, path: PathState, elapsed: float) -> int:
        waiting = max(QUEUED, path.shortest / 2)
        if path.round_trip - path.shortest <= waiting:
            return min(int(self._allowed * self._growth), MOST)
        self._growth = LATER_GROWTH
        rate = (path.acknowledged - self._acknowledged) / elapsed
        # Of a single segment the far side delays the acknowledgement.
        return min(max(int(rate * (path.shortest + waiting)), 2 * path.segment), MOST)


def read_path(sock: trio.socket.SocketType) -> PathState | None:
    """Ask the kernel; None where it does not tell. Raises: OSError for a socket that is closed."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    if len(info) < _SIZE:
        return None
    segment, unacknowledged = _COUNTS.unpack_from(info, 16)
    (acknowledged,) = _ACKED.unpack_from(info, 120)
    (round_trip,) = _ROUND_TRIP.unpack_from(info, 68)
    unsent, shortest = _WAITING.unpack_from(info, 144)
    return PathState(segment, unacknowledged * segment + unsent, acknowledged, round_trip / 1e6, shortest / 1e6)
