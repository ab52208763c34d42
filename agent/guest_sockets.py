"""Whether a local connection carries a guest's traffic: by the processes that hold its client's socket.

A guest in user-mode networking reaches the host's loopback through its QEMU or passt, as the user that runs them.
`held_by_guest` blocks for a few milliseconds and belongs into a worker thread; `held_by_recent_client` does not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from . import processes

GUEST_PROCESSES = ("qemu", "kvm", "passt", "pasta", "slirp4netns", "cloud-hyp", "firecracker", "crosvm")


def held_by_recent_client(inode: int, known: Iterable[int] = ()) -> bool:
    """Return whether a client that came a moment ago has the socket. False means that this does not know.

    `known` are processes that carry a guest's traffic whatever their name.
    """
    return _owners.is_recent_client(inode, frozenset(known))


def held_by_guest(inode: int, known: Iterable[int] = ()) -> bool:
    """Return whether the socket belongs to a process that carries a guest's traffic.

    passt hides its open files: while one runs, a socket that no other process shows counts as its own.
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


@dataclass(frozen=True, slots=True)
class _Family:
    """A process, its ancestors and its first thread's children, none of them a guest's by its name at `read_at`."""

    started: int
    children: bytes
    members: frozenset[int]
    read_at: float


class SocketOwners:
    """What is remembered of the machine's processes, so that a new connection does not read all of them.

    A process can become a QEMU by exec: names are read again after `NAMES_KEPT`, which no guest boots in.
    """

    NAMES_KEPT = 2.0
    CLIENTS, YOUNGEST, FILES = 4, 16, 64
    """Whose open files, the newest of each, are looked at before those of all guests."""
    SEARCHED_EVERY = 10.0
    REMEMBERED = 8

    def __init__(self) -> None:
        self._guests: frozenset[int] = frozenset()
        self._seen: frozenset[str] = frozenset()
        self._read_at = self._searched_at = 0.0
        # Both are replaced, never changed: they are read without a lock.
        self._clients: tuple[int, ...] = ()
        self._families: dict[int, _Family] = {}
        self._lock, self._clients_lock = threading.Lock(), threading.Lock()

    def is_recent_client(self, inode: int, known: frozenset[int]) -> bool:
        """Return what `is_client` does, for clients whose family has been read within `NAMES_KEPT`."""
        for pid in self._clients[: self.CLIENTS]:
            if pid in self._families and inode in processes.newest_sockets(pid, self.FILES):
                family = self._kept_family(pid)
                return family is not None and not family.members & known
        return False

    def is_client(self, inode: int, known: frozenset[int]) -> bool:
        """Return whether a recent client or one of the youngest processes has the socket, and no guest is near it.

        False means that this does not know. A process carries no guest's traffic if neither it nor its ancestors and
        children do: who holds such a socket has made it itself.
        """
        for number in [*self._clients[: self.CLIENTS], *processes.youngest(self.YOUNGEST)]:
            if inode in processes.newest_sockets(number, self.FILES):
                # A number may be a thread's, which has a name of its own.
                pid = processes.process_of(number)
                family = self._kept_family(pid) or _read_family(pid)
                if family is None or family.members & known:
                    return False
                self._remember(pid, family)
                return True
        return False

    def _kept_family(self, pid: int) -> _Family | None:
        """What was read of this very process a moment ago. A child that it has made since then is not overlooked."""
        family = self._families.get(pid)
        if family is None or not 0 <= time.monotonic() - family.read_at <= self.NAMES_KEPT:
            return None
        current = processes.parent_and_start(pid)[1], processes.children(pid, pid)
        return family if current == (family.started, family.children) and not _is_guest(pid) else None

    def _remember(self, pid: int, family: _Family | None = None) -> None:
        with self._clients_lock:
            self._clients = (pid, *(other for other in self._clients if other != pid))[: self.REMEMBERED]
            families = {other: self._families[other] for other in self._clients if other in self._families}
            self._families = families if family is None else {**families, pid: family}

    def guests(self) -> frozenset[int]:
        """Return the processes that are guests' by their names."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at > self.NAMES_KEPT:
                self._seen, self._guests, self._read_at = frozenset(), frozenset(), now
            there = frozenset(os.listdir("/proc"))  # noqa: PTH208 - for each new connection
            new = {int(name) for name in there - self._seen if name.isdigit()}
            gone = {int(name) for name in self._seen - there if name.isdigit()}
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
        likely = [pid for pid in self._clients if pid in others]
        for pid in [*likely, *sorted(others, reverse=True)]:
            if processes.shows(pid, inode):
                self._remember(pid)
                return True
        return False


_owners = SocketOwners()


def _is_guest(pid: int) -> bool:
    return processes.name_of(pid).startswith(GUEST_PROCESSES)


def _read_family(pid: int) -> _Family | None:
    """Return the family of a process; None when a guest's process is in it, or it is gone."""
    now, (_, started), children = time.monotonic(), processes.parent_and_start(pid), processes.children(pid, pid)
    members = frozenset({pid, *processes.ancestors(pid), *map(int, children.split())})
    return None if not started or any(map(_is_guest, members)) else _Family(started, children, members, now)
