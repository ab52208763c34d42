"""What the guest says about itself: its addresses, the ports it listens on, its SSH host keys."""

import os
from _socket import AF_INET, AF_INET6, inet_ntop

from .connection import ssh_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LISTEN = b"0A"
MAX_ROWS = 256
KEYS = "/etc/ssh"


def report() -> "dict[str, Any]":
    return {
        "op": "report",
        "hostname": os.uname().nodename,
        "listening": _listening(),
        "addresses": _addresses(),
        "host_keys": _host_keys(),
        "ssh": bool(ssh_server()),
    }


def _rows(path: str) -> "list[list[bytes]]":
    try:
        with open(path, "rb") as file:
            return [line.split() for line in file]
    except OSError:
        return []


def _listening() -> "list[list[Any]]":
    found = []
    for path, family in (("/proc/net/tcp", AF_INET), ("/proc/net/tcp6", AF_INET6)):
        for row in _rows(path)[1:]:
            if len(row) > 3 and row[3] == LISTEN:
                address, port = row[1].split(b":")
                found.append([int(port, 16), _text(family, address)])
    return sorted(found)[:MAX_ROWS]


def _text(family: int, words: bytes) -> str:
    """The kernel writes addresses as words of the CPU's own byte order."""
    raw = bytes.fromhex(words.decode())
    return inet_ntop(family, b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))


def _addresses() -> "list[str]":
    """Those that are neither loopback nor link-local; IPv4 first."""
    found: "list[str]" = []
    rows = _rows("/proc/net/fib_trie")
    for row, after in zip(rows, rows[1:]):
        if row and row[0] == b"|--" and after[:1] == [b"/32"] and after[-1] == b"LOCAL":
            found.append(row[1].decode())
    for row in _rows("/proc/net/if_inet6"):
        if len(row) > 3 and row[3] == b"00":
            found.append(inet_ntop(AF_INET6, bytes.fromhex(row[0].decode())))
    return [one for one in dict.fromkeys(found) if not one.startswith("127.")][:MAX_ROWS]


def _host_keys() -> "list[str]":
    found = []
    try:
        names = sorted(os.listdir(KEYS))
    except OSError:
        return []
    for name in names:
        if name.startswith("ssh_host_") and name.endswith("_key.pub"):
            rows = _rows(KEYS + "/" + name)
            if rows and len(rows[0]) > 1:
                found.append(b" ".join(rows[0][:2]).decode("utf-8", "replace")[:4096])
    return found[:16]
