"""Bounds on time that hold on a busy machine: the time in which others had the CPU does not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

AT_MOST = 120.0
"""Seconds after which a block that does not end is given up."""


class Stopwatch:
    """Measures from its making on, in this process and in those of `pids`, on which the measured work waits too."""

    def __init__(self, *pids: int) -> None:
        self._pids = ("self", *map(str, pids))
        self._began, self._waited = time.monotonic(), self._run_delay()

    @property
    def seconds(self) -> float:
        """Seconds since it was made, without those in which a thread was ready to run and had no CPU."""
        elapsed = time.monotonic() - self._began
        return max(0.0, elapsed - max(0.0, self._run_delay() - self._waited))

    def _run_delay(self) -> float:
        """The kernel counts it for each thread, in nanoseconds: the second number of `schedstat`."""
        return sum(_run_delay(thread) for pid in self._pids for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def _run_delay(schedstat: Path) -> float:
    try:
        return int(schedstat.read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # the thread has ended, or this kernel does not count
        return 0.0


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail unless the block ends within `seconds` as a `Stopwatch` measures them."""
    stopwatch = Stopwatch()
    with trio.fail_after(AT_MOST):
        yield
    assert stopwatch.seconds < seconds
