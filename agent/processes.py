"""What the kernel tells of the machine's processes under /proc: names, families, open sockets.

Read for each new local connection, so by file descriptors and bare paths; what is gone meanwhile reads as nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_READ_SIZE = 1 << 12


def name_of(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").rstrip(b"\n").decode("utf-8", "replace")


def process_of(number: int) -> int:
    """The process that a number belongs to, which may be a thread's; 0 for what is not there."""
    try:
        return int(_read(f"/proc/{number}/status").partition(b"\nTgid:")[2].split(None, 1)[0])
    except (IndexError, ValueError):
        return 0


def parent_and_start(pid: int) -> tuple[int, int]:
    """The parent of a process and when it was started, in ticks since boot; 0 for what is not there."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 else (0, 0)


def ancestors(pid: int) -> list[int]:
    found = []
    while (pid := parent_and_start(pid)[0]) > 1:
        found.append(pid)
    return found


def children(pid: int, thread: int) -> bytes:
    """The children that a thread has made, as the kernel writes them; nothing where it does not say."""
    return _read(f"/proc/{pid}/task/{thread}/children", whole=True)


def youngest(count: int) -> range:
    """The numbers that the kernel gave last to processes and threads."""
    try:
        last = int(_read("/proc/loadavg").split()[-1])
    except (IndexError, ValueError):
        return range(0)
    return range(last, max(0, last - count), -1)


def newest_sockets(pid: int, files: int) -> Iterator[int]:
    """The inodes of the sockets among the files with the highest numbers; none of a process that hides them."""
    directory = f"/proc/{pid}/fd"
    try:
        names = sorted(os.listdir(directory), key=int, reverse=True)  # noqa: PTH208 - for each new connection
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


def _read(path: str, *, whole: bool = False) -> bytes:
    """The first read of a file, which has all of the small ones; a Python file object costs three times as much."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        content = os.read(file, _READ_SIZE)
        while whole and (more := os.read(file, _READ_SIZE)):
            content += more
        return content
    except OSError:
        return b""
    finally:
        os.close(file)
