"""A pool of libvirt connections: one for each call in progress.

libvirt's client before 10.0 loses wake-ups between threads that share a connection: while one call waits for a hung
guest or for a start, others on the same connection are delayed for seconds, whatever VM they are about.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import libvirt

_MAX_IDLE = 8


class ConnectionPool:
    """Used in worker threads. `shared`, where libvirt runs in our own process, is used by all calls instead."""

    def __init__(self, uri: str, shared: libvirt.virConnect | None) -> None:
        self._uri = uri
        self._shared = shared
        self._lock = threading.Lock()
        self._idle: list[libvirt.virConnect] = []
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[libvirt.virConnect]:
        """Yield a connection of the pool. Raises: libvirt.libvirtError when none can be made."""
        if self._shared is not None:
            yield self._shared
            return
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = libvirt.open(self._uri)
        try:
            yield connection
        finally:
            self._return(connection)

    def close(self) -> None:
        """Close the idle connections, and the others when they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(libvirt.libvirtError):
                connection.close()

    def _return(self, connection: libvirt.virConnect) -> None:
        with suppress(libvirt.libvirtError):
            alive = connection.isAlive()
            with self._lock:
                if alive and not self._closed and len(self._idle) < _MAX_IDLE:
                    self._idle.append(connection)
                    return
            connection.close()
