"""Who is at the far end of a loopback connection, by the kernel's own tables: its user, and whether it is a guest's.

A guest in user-mode networking reaches the host's loopback through its QEMU or passt, as the user that runs them; so
the user alone proves nothing while the socket may belong to such a process.
What blocks in here does so for a few milliseconds at most; `held_by_guest` belongs into a worker thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

Address = tuple[str, int]

# The user that the kernel shows for users outside this user namespace: it may be anybody.
OVERFLOW_UID = 65534
GUEST_PROCESSES = ("qemu", "kvm", "passt", "pasta", "slirp4netns", "cloud-hyp", "firecracker", "crosvm")

_scans = trio.CapacityLimiter(4)
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_HEADER = struct.Struct("=IHHII")
# family, state, timer, retransmissions, ports (network order), addresses, interface, cookie, expiry, queues, uid, inode
_ANSWER = struct.Struct("=BBBB2s2s16s16sIIIIIIII")
_ANY = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class FarSocket:
    """The client's end. `inode` names it among the open files of its process."""

    uid: int
    inode: int


def network_of(host: str) -> str:
    """Return what a far side's share is counted by: its IPv4 address, or the /64 network of its IPv6 address.

    Who has one address of such a network may use all of them.
    """
    if ":" not in host or host.startswith("::ffff:"):
        return host
    return str(ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False))


def far_socket(client: Address, server: Address) -> FarSocket | None:
    """The socket on this machine that is connected from `client` to `server`, or None if there is none.

    A socket that its process has closed already has no inode, and old kernels call root its owner: it counts as none.
    """
    try:
        found = _ask_kernel(client, server)
    except OSError:
        # No socket diagnosis here (a container's seccomp filter, a kernel without inet_diag).
        found = _read_table(client, server)
    return found if found is not None and found.inode else None


def _packed(host: str) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host.partition("%")[0])


def _ask_kernel(client: Address, server: Address) -> FarSocket | None:
    source, target = _packed(client[0]), _packed(server[0])
    family = socket.AF_INET6 if len(source) == 16 else socket.AF_INET
    question = struct.pack(
        "=IHHIIBBBBI", _HEADER.size + 56, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0,
        family, socket.IPPROTO_TCP, 0, 0, _ANY,
    )  # fmt: skip
    question += struct.pack(">HH16s16s", client[1], server[1], source, target) + struct.pack("=III", 0, _ANY, _ANY)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1)
        kernel.send(question)
        reply = kernel.recv(4096)
    kind = _HEADER.unpack_from(reply)[1]
    if kind != _SOCK_DIAG_BY_FAMILY:
        code = -struct.unpack_from("=i", reply, _HEADER.size)[0]
        if code == 2:  # ENOENT: no such connection
            return None
        raise OSError(code, os.strerror(code))
    fields = _ANSWER.unpack_from(reply, _HEADER.size)
    # A vanished connection finds the listener on its port instead: only the very connection counts.
    ports, addresses = fields[4] + fields[5], (fields[6], fields[7])
    wanted = struct.pack(">HH", client[1], server[1]), (source.ljust(16, b"\0"), target.ljust(16, b"\0"))
    return FarSocket(uid=fields[-2], inode=fields[-1]) if (ports, addresses) == wanted else None


def _read_table(client: Address, server: Address) -> FarSocket | None:
    table = Path("/proc/net/tcp6" if ":" in client[0] else "/proc/net/tcp")
    wanted = [_in_table(client), _in_table(server)]
    with contextlib.suppress(OSError), table.open() as lines:
        for line in lines:
            fields = line.split()
            if fields[1:3] == wanted:
                return FarSocket(uid=int(fields[7]), inode=int(fields[9]))
    return None


def _in_table(address: Address) -> str:
    """As the kernel prints it: each 32-bit word in this machine's byte order."""
    packed = _packed(address[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"


def is_own(uid: int) -> bool:
    """The agent's own user, or root. The kernel's name for users outside the namespace is nobody in particular."""
    return uid == 0 or (uid == os.geteuid() and uid != OVERFLOW_UID)


async def is_own_program(far: FarSocket, guests: Iterable[int]) -> bool:
    """Whether the far end is a program of this node's own user, and none that carries a guest's traffic."""
    if not is_own(far.uid):
        return False
    scan = partial(held_by_guest, far.inode, tuple(guests))
    return not await trio.to_thread.run_sync(scan, limiter=_scans)


def unix_peer(sock: trio.socket.SocketType) -> int:
    """The user at the far end of a unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iii", credentials)[1])


def held_by_guest(inode: int, known: Iterable[int] = ()) -> bool:
    """Return whether the socket belongs to a process that carries a guest's traffic.

    `known` are such processes whatever their name. passt hides its open files: while one runs, a socket that no
    other process shows counts as its own.
    """
    known = frozenset(known)
    if _processes.is_visitor(inode, known):
        return False
    guests = _processes.guests() | known
    hidden = False
    for pid in guests:
        try:
            if inode in _sockets(pid):
                return True
        except PermissionError:
            hidden = True
    if hidden:
        return not _processes.shown(inode, besides=guests)
    _processes.find_visitor(inode, besides=guests)
    return False


class _Processes:
    """What is remembered of the machine's processes, so that a new connection does not read all of them.

    A process can become a QEMU by exec: names are read again after `NAMES_KEPT`, which no guest boots in.
    """

    NAMES_KEPT = 2.0
    VISITORS, YOUNGEST, FILES = 4, 16, 64
    """Whose open files, the newest of each, are looked at before those of all guests."""
    SEARCHED_EVERY = 10.0
    RELATIVES = 32

    def __init__(self) -> None:
        self._guests: frozenset[int] = frozenset()
        self._seen: frozenset[str] = frozenset()
        self._read_at = self._searched_at = 0.0
        self._owners: deque[int] = deque(maxlen=8)
        self._lock = threading.Lock()

    def is_visitor(self, inode: int, known: frozenset[int]) -> bool:
        """Return whether a recent visitor or one of the youngest processes has the socket, and no guest is near it.

        False means that this does not know. A process carries no guest's traffic if neither it nor its ancestors and
        children do: who holds such a socket has made it itself.
        """
        with self._lock:
            visitors = list(self._owners)[: self.VISITORS]
        for number in [*visitors, *_youngest(self.YOUNGEST)]:
            if inode in _newest_sockets(number, self.FILES):
                # A number may be a thread's, which has a name of its own.
                pid = _status(number)[0]
                family = {pid, *_ancestors(pid), *_children(pid)}
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

    def find_visitor(self, inode: int, besides: frozenset[int]) -> None:
        """Remember who has the socket, so that its next one costs less. Not more often than `SEARCHED_EVERY`."""
        with self._lock:
            now = time.monotonic()
            if now - self._searched_at < self.SEARCHED_EVERY:
                return
            self._searched_at = now
        self.shown(inode, besides)

    def shown(self, inode: int, besides: frozenset[int]) -> bool:
        """Return whether another process shows the socket: the last visitors are asked first, then the youngest."""
        with self._lock:
            others = {int(name) for name in self._seen if name.isdigit()} - besides
            likely = [pid for pid in self._owners if pid in others]
        for pid in [*likely, *sorted(others, reverse=True)]:
            if _shows(pid, inode):
                self._remember(pid)
                return True
        return False


_processes = _Processes()


def _is_guest(pid: int) -> bool:
    return _name(pid).startswith(GUEST_PROCESSES)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:  # noqa: PTH123 - hundreds of these for one connection
            return comm.read(16).decode("utf-8", "replace")
    except OSError:
        return ""


def _status(pid: int) -> tuple[int, int]:
    """The process that a number belongs to, and its parent; 0 for what is not there."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - for each new connection
            lines = dict(line.split(b":", 1) for line in status.read().splitlines())
        return int(lines[b"Tgid"]), int(lines[b"PPid"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def _ancestors(pid: int) -> list[int]:
    found = []
    while (pid := _status(pid)[1]) > 1:
        found.append(pid)
    return found


def _children(pid: int) -> list[int]:
    """The children that its first thread has made; none where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as children:  # noqa: PTH123 - as above
            return [int(child) for child in children.read().split()]
    except OSError:
        return []


def _youngest(count: int) -> range:
    """The numbers that the kernel gave last to processes and threads."""
    try:
        with open("/proc/loadavg", "rb") as load:  # noqa: PTH123 - as above
            last = int(load.read().split()[-1])
    except (OSError, ValueError):
        return range(0)
    return range(last, max(0, last - count), -1)


def _newest_sockets(pid: int, files: int) -> Iterator[int]:
    """The inodes of the sockets among the files with the highest numbers; none of a process that hides them."""
    directory = f"/proc/{pid}/fd"
    try:
        names = sorted(os.listdir(directory), key=int, reverse=True)  # noqa: PTH208 - as above
    except OSError:
        return
    for name in names[:files]:
        with contextlib.suppress(OSError):
            link = os.readlink(f"{directory}/{name}")  # noqa: PTH115 - as above
            if link.startswith("socket:["):
                yield int(link[8:-1])


def _sockets(pid: int) -> set[int]:
    """The inodes of a process's sockets. Raises: PermissionError when it hides them."""
    found: set[int] = set()
    directory = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(directory):  # noqa: PTH208 - as above
            with contextlib.suppress(FileNotFoundError):
                link = os.readlink(f"{directory}/{name}")  # noqa: PTH115 - as above
                if link.startswith("socket:["):
                    found.add(int(link[8:-1]))
    return found


def _shows(pid: int, inode: int) -> bool:
    try:
        return inode in _sockets(pid)
    except PermissionError:
        return False
