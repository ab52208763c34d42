"""How much bulk may be on its way on a TCP connection, so that a call does not wait behind it in any queue.

The kernel tells what is under way, how fast it arrives and how long the shortest round trip was. Bulk is held to what
the path carries by itself, and a little that waits: so much that the rate is found out, so little that no call is late.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final

import trio

QUEUED: Final = 0.008
"""Seconds of data that may wait on the way, or half a round trip where that is longer."""
FIRST: Final = 16 * 1024
"""Bytes that may be under way before a rate is known."""
LONGEST_PAUSE: Final = 0.02
SHORTEST_PAUSE: Final = 0.001
UNBOUNDED: Final = 1 << 20
# Of struct tcp_info (linux/tcp.h): snd_mss, unacked; min_rtt in microseconds, notsent_bytes, delivery_rate in bytes/s.
_HEAD = struct.Struct("=16xI4xI")
_MIN_RTT, _DELIVERY_RATE = 148, 160
_NOTSENT = 144
_SIZE: Final = 168


@dataclass(frozen=True, slots=True)
class PathState:
    """What the kernel knows of a connection; sizes in bytes, times in seconds, rates in bytes a second."""

    segment: int
    under_way: int
    round_trip: float
    rate: float


@dataclass(frozen=True, slots=True)
class BulkRoom:
    """Bytes of bulk that may be written now; where that is none, seconds until it is worth another look."""

    size: int
    pause: float = SHORTEST_PAUSE


def bulk_room(path: PathState) -> BulkRoom:
    """Two segments may always be under way: of a single one the far side delays the acknowledgement."""
    if path.rate:
        allowed = max(path.rate * (path.round_trip + max(QUEUED, path.round_trip / 2)), 2.0 * path.segment)
        pause = path.segment / path.rate
    else:
        allowed, pause = float(FIRST), LONGEST_PAUSE
    room = int(allowed) - path.under_way
    # Crumbs would cost more than they carry.
    size = room if room >= min(path.segment, allowed) else 0
    return BulkRoom(size, min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE))


def read_path(sock: trio.socket.SocketType) -> PathState | None:
    """Ask the kernel; None where it does not tell. Raises: OSError for a socket that is closed."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    if len(info) < _SIZE:
        return None
    segment, unacked = _HEAD.unpack_from(info)
    (unsent,) = struct.unpack_from("=I", info, _NOTSENT)
    (round_trip,) = struct.unpack_from("=I", info, _MIN_RTT)
    (rate,) = struct.unpack_from("=Q", info, _DELIVERY_RATE)
    return PathState(segment, unacked * segment + unsent, round_trip / 1e6, float(rate))
