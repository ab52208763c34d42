"""Decoding off the event loop: no peer has more than one thread, and all peers together have a few."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock
from typing import TypeVar

import trio
import trio.testing

from tests.stopwatch import within
from twinshare.agent.p2p.offload import MAX_THREADS, SMALL, Decoder, Threads

T = TypeVar("T")
LARGE = bytes(SMALL + 1)


class Slow:
    """A decoder's function that waits, and counts how many of them run at once."""

    def __init__(self) -> None:
        self.go, self._lock = Event(), Lock()
        self.running = self.most = 0

    def read(self, data: bytes) -> int:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.go.wait(10)
        with self._lock:
            self.running -= 1
        return len(data)


async def settled(slow: Slow, decoders: list[Decoder], times: int) -> int:
    """How many run at most, when each decoder has so many large ones at once."""
    async with trio.open_nursery() as nursery:
        for decoder in decoders:
            for _ in range(times):
                nursery.start_soon(decoder.decode, LARGE, slow.read)
        with within(10):
            while not slow.running:
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.1)
        slow.go.set()
    return slow.most


async def test_of_one_peer_one_is_decoded_at_a_time() -> None:
    assert await settled(Slow(), [Decoder(Threads())], 8) == 1


async def test_all_peers_together_have_a_few_threads() -> None:
    threads = Threads()
    assert await settled(Slow(), [Decoder(threads) for _ in range(4 * MAX_THREADS)], 1) == MAX_THREADS


async def test_what_is_small_takes_no_thread() -> None:
    async def offload(read: Callable[[], T]) -> T:
        raise AssertionError("it went to a thread")

    assert await Decoder(offload).decode(bytes(SMALL), len) == SMALL
