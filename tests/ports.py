"""Ports that nothing else takes before a test does."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_FIRST = 20_000


def free_port() -> int:
    """Return a free port of 127.0.0.1, below those that the kernel gives to whoever asks for any.

    Those go round: between this and the test's own bind, a connection of another process may have got one.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first, last = (_FIRST, lowest) if lowest > _FIRST + 1000 else (2_000, 10_000)
    for port in random.sample(range(first, last), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"of {first} to {last} no port is free")
