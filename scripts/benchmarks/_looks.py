"""Looking at a process from outside: how long its answers take, what it has used of the machine."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path


def ask(port: int, path: str, times: int) -> list[float]:
    """Seconds that each of so many requests on one connection took (blocking)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        taken.append(time.perf_counter() - begun)
        if answer.status != 200:
            raise RuntimeError(f"{path} answered {answer.status}")
    connection.close()
    return taken


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> float:
    """Megabytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


async def once(content: bytes) -> AsyncIterator[bytes]:
    """An upload in one piece."""
    yield content
