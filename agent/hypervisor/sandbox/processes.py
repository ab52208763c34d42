"""Finds the sandbox's processes in /proc. A process is identified by pid and start time, because pids are reused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...processes import children


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat[0] in b"ZX" else int(stat[19])


def alive(process: tuple[int, int] | None) -> bool:
    return process is not None and start_time(process[0]) == process[1]


def in_network(inode: int) -> frozenset[int]:
    """Return all processes in a network namespace."""
    return frozenset(pid for pid in _all() if network_of(pid) == inode)


def network_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def has_mounted(pid: int, path: str) -> bool:
    """Return whether a process sees a mount at `path`."""
    try:
        table = Path(f"/proc/{pid}/mountinfo").read_text()
    except OSError:
        return False
    return any(line.split()[4] == path for line in table.splitlines())


def owner_of(pid: int) -> int | None:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def descendants(ancestor: int) -> frozenset[int]:
    """Return all descendants of a process, by reading no others where the kernel lists a process's children."""
    if not os.access("/proc/thread-self/children", os.R_OK):
        return _descendants_by_parents(ancestor)
    found: set[int] = set()
    unread = [ancestor]
    while unread:
        new = _children(unread.pop()) - found
        found |= new
        unread += new
    return frozenset(found)


def _children(pid: int) -> set[int]:
    """Return the children of all threads of a process."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names only, for each new local connection
    except OSError:
        return set()
    return {int(child) for thread in threads for child in children(pid, int(thread)).split()}


def _descendants_by_parents(ancestor: int) -> frozenset[int]:
    parents = {pid: int(stat[1]) for pid in _all() if (stat := _stat(pid)) is not None}
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found - {ancestor})


def _all() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208 - names only, and many


def _stat(pid: int) -> list[bytes] | None:
    """Return the fields after the command name (which may hold any byte): state, parent, and so on."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return content[content.rindex(b")") + 2 :].split()
