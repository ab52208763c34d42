"""A busy machine does not fail a bound on time, and what really takes long does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from tests.stopwatch import Stopwatch, within


def use_cpu(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


async def test_what_takes_longer_fails() -> None:
    with pytest.raises(AssertionError), within(0.02):
        use_cpu(0.1)  # a sleep may be over before its thread had the CPU to begin it
    with within(30):
        await trio.lowlevel.checkpoint()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count")
def test_the_time_in_which_others_had_the_cpu_does_not_count() -> None:
    """Another process that never rests takes turns with this one on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            try:
                assert other.stdout is not None
                other.stdout.readline()
                stopwatch, began, before = Stopwatch(), time.monotonic(), time.thread_time()
                while time.thread_time() - before < 0.2:
                    pass
                waited = time.monotonic() - began - 0.2
                assert stopwatch.seconds - 0.2 < waited / 2 + 0.05
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, allowed)
