"""How glibc gives memory to this process: one heap for all threads, whose free end it keeps for a while."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # <malloc.h>
_LARGE_BLOCK = 512 << 10
_KEPT = 4 << 20


def use_one_heap() -> None:
    """Let all threads take their memory from one place, before there are threads.

    glibc gives each thread a heap of its own, and what a worker has made and the loop keeps leaves that full of holes:
    an agent with work to do grew from 97 to 113 MB in minutes, and with one heap from 94 to 98. Blocks of the size of a
    peer's largest frame have places of their own, which go back to the system: glibc would take them from the heap
    after the first one. The free end of the heap is kept up to 4 MiB: bulk makes and drops buffers all the time, and to
    get their pages from the kernel each time was a third of the CPU that a received MiB takes.
    """
    with suppress(AttributeError):  # another libc than glibc
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        set_option(_M_TRIM_THRESHOLD, _KEPT)
