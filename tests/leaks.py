"""Counts what a process holds, so that a test can show that everything it took was given back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Held:
    """Open files by what they are, threads by name, direct children by process id."""

    files: tuple[str, ...]
    threads: tuple[str, ...]
    children: tuple[int, ...]


def held() -> Held:
    """What this process holds now. trio keeps idle worker threads for ten seconds: they are not counted."""
    gc.collect()
    names = [thread.name for thread in threading.enumerate()]
    return Held(
        files=tuple(sorted(open_files())),
        threads=tuple(sorted(name for name in names if not name.lower().startswith("trio thread"))),
        children=tuple(sorted(_children())),
    )


def open_files() -> Iterator[str]:
    """Sockets and pipes by kind alone: their numbers say nothing, their count does."""
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # the listing's own
        yield target.partition(":[")[0]


def _children() -> Iterator[int]:
    for thread in Path("/proc/self/task").iterdir():
        try:
            listed = (thread / "children").read_text()
        except FileNotFoundError:
            continue  # an idle thread has just ended; its children are another thread's now
        yield from map(int, listed.split())


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fail unless the body gives back every file, thread and child process that it took."""
    before = held()
    yield
    after = held()
    assert after == before
