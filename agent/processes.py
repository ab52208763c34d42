"""What the kernel tells of the machine's processes under /proc: names, families, open sockets.

Read for each new local connection, so by file descriptors and bare paths; what is gone meanwhile reads as nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:  # noqa: PTH123 - hundreds of these for one connection
            return comm.read(16).decode("utf-8", "replace")
    except OSError:
        return ""


def status(pid: int) -> tuple[int, int]:
    """The process that a number belongs to, and its parent; 0 for what is not there."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - for each new connection
            lines = dict(line.split(b":", 1) for line in file.read().splitlines())
        return int(lines[b"Tgid"]), int(lines[b"PPid"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def ancestors(pid: int) -> list[int]:
    found = []
    while (pid := status(pid)[1]) > 1:
        found.append(pid)
    return found


def children(pid: int) -> list[int]:
    """The children that its first thread has made; none where the kernel does not say."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:  # noqa: PTH123 - as above
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def youngest(count: int) -> range:
    """The numbers that the kernel gave last to processes and threads."""
    try:
        with open("/proc/loadavg", "rb") as load:  # noqa: PTH123 - as above
            last = int(load.read().split()[-1])
    except (OSError, ValueError):
        return range(0)
    return range(last, max(0, last - count), -1)


def newest_sockets(pid: int, files: int) -> Iterator[int]:
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


def open_sockets(pid: int) -> set[int]:
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


def shows(pid: int, inode: int) -> bool:
    try:
        return inode in open_sockets(pid)
    except PermissionError:
        return False
