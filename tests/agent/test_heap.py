"""What the process keeps of the memory that bulk made and dropped."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from twinshare.agent.heap import use_one_heap

def make_and_drop():
    return len([bytes(256 << 10) for _ in range(8)])

use_one_heap()
make_and_drop()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    make_and_drop()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_buffers_of_bulk_do_not_come_from_the_kernel_each_time() -> None:
    faults = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout
    assert int(faults) < 1000
