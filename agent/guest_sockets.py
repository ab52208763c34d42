"""Whether a local connection carries a guest's traffic: by the processes that hold its client's socket.

A guest in user-mode networking reaches the host's loopback through its QEMU or passt, as the user that runs them.
What blocks in here does so for a few milliseconds at most; `held_by_guest` belongs into a worker thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable

from . import processes

GUEST_PROCESSES = ("qemu", "kvm", "passt", "pasta", "slirp4netns", "cloud-hyp", "firecracker", "crosvm")


def held_by_guest(inode: int, known: Iterable[int] = ()) -> bool:
    """Return whether the socket belongs to a process that carries a guest's traffic.

    `known` are such processes whatever their name. passt hides its open files: while one runs, a socket that no
    other process shows counts as its own.
    """
    known = frozenset(known)
    if _owners.is_client(inode, known):
        return False
    guests = _owners.guests() | known
    hidden = False
    for pid in guests:
        try:
            if inode in processes.open_sockets(pid):
                return True
        except PermissionError:
            hidden = True
    if hidden:
        return not _owners.shown(inode, besides=guests)
    _owners.find_owner(inode, besides=guests)
    return False


class SocketOwners:
    """What is remembered of the machine's processes, so that a new connection does not read all of them.

    A process can become a QEMU by exec: names are read again after `NAMES_KEPT`, which no guest boots in.
    """

    NAMES_KEPT = 2.0
    CLIENTS, YOUNGEST, FILES = 4, 16, 64
    """Whose open files, the newest of each, are looked at before those of all guests."""
    SEARCHED_EVERY = 10.0
    RELATIVES = 32

    def __init__(self) -> None:
        self._guests: frozenset[int] = frozenset()
        self._seen: frozenset[str] = frozenset()
        self._read_at = self._searched_at = 0.0
        self._owners: deque[int] = deque(maxlen=8)
        self._lock = threading.Lock()

    def is_client(self, inode: int, known: frozenset[int]) -> bool:
        """Return whether a recent client or one of the youngest processes has the socket, and no guest is near it.

        False means that this does not know. A process carries no guest's traffic if neither it nor its ancestors and
        children do: who holds such a socket has made it itself.
        """
        with self._lock:
            clients = list(self._owners)[: self.CLIENTS]
        for number in [*clients, *processes.youngest(self.YOUNGEST)]:
            if inode in processes.newest_sockets(number, self.FILES):
                # A number may be a thread's, which has a name of its own.
                pid = processes.status(number)[0]
                family = {pid, *processes.ancestors(pid), *processes.children(pid)}
                if not pid or len(family) > self.RELATIVES or family & known or any(_is_guest(one) for one in family):
                    return False
                self._remember(pid)
                return True
        return False

    def _remember(self, pid: int) -> None:
        with self._lock:
            if pid in self._owners:
                self._owners.remove(pid)
            self._owners.appendleft(pid)

    def guests(self) -> frozenset[int]:
        """Return the processes that are guests' by their names."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at > self.NAMES_KEPT:
                self._seen, self._guests, self._read_at = frozenset(), frozenset(), now
            there = frozenset(os.listdir("/proc"))  # noqa: PTH208 - for each new connection
            new = {int(name) for name in there - self._seen if name.isdigit()}
            gone = {int(name) for name in self._seen - there}
            self._guests = (self._guests - gone) | {pid for pid in new if _is_guest(pid)}
            self._seen = there
            return self._guests

    def find_owner(self, inode: int, besides: frozenset[int]) -> None:
        """Remember who has the socket, so that its next one costs less. Not more often than `SEARCHED_EVERY`."""
        with self._lock:
            now = time.monotonic()
            if now - self._searched_at < self.SEARCHED_EVERY:
                return
            self._searched_at = now
        self.shown(inode, besides)

    def shown(self, inode: int, besides: frozenset[int]) -> bool:
        """Return whether another process shows the socket: the last clients are asked first, then the youngest."""
        with self._lock:
            others = {int(name) for name in self._seen if name.isdigit()} - besides
            likely = [pid for pid in self._owners if pid in others]
        for pid in [*likely, *sorted(others, reverse=True)]:
            if processes.shows(pid, inode):
                self._remember(pid)
                return True
        return False


_owners = SocketOwners()


def _is_guest(pid: int) -> bool:
    return processes.name_of(pid).startswith(GUEST_PROCESSES)
