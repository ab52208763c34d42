"""Who is at the far end of a loopback connection, by the kernel's own tables: its user and its socket.

The user alone proves nothing while the socket may belong to a process that carries a guest's traffic.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from .guest_sockets import held_by_guest, held_by_recent_client

Address = tuple[str, int]

# The user that the kernel shows for users outside this user namespace: it may be anybody.
OVERFLOW_UID = 65534

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
    known = tuple(guests)
    if held_by_recent_client(far.inode, known):
        return True
    scan = partial(held_by_guest, far.inode, known)
    return not await trio.to_thread.run_sync(scan, limiter=_scans)


def unix_peer(sock: trio.socket.SocketType) -> int:
    """The user at the far end of a unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iii", credentials)[1])
