"""Cancels work at each of its checkpoints in turn: whatever it has opened by then must have an owner already."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio
import trio.testing

from .leaks import open_files

MOST = 10_000
"""Checkpoints of one piece of work."""
SETTLED_WITHIN = 30.0
"""Seconds in which the far side of a connection sees its end."""


class _CancelAt(trio.abc.Instrument):
    """Cancels `scope` after `number` steps of the run's tasks, each from one checkpoint to the next."""

    def __init__(self, number: int, scope: trio.CancelScope) -> None:
        self._left, self._scope = number, scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()


async def cancel_at_each_checkpoint(work: Callable[[], Awaitable[object]]) -> int:
    """Run `work` again and again, cancelled one checkpoint later each time, and return how often it was cancelled.

    `work` gives back all that it takes. Raises: AssertionError when a file or socket is left open.
    """
    await work()
    await trio.testing.wait_all_tasks_blocked(0.01)
    with _no_collection():
        before = Counter(open_files())
        for number in range(1, MOST):
            with trio.CancelScope() as scope:
                cancel = _CancelAt(number, scope)
                trio.lowlevel.add_instrument(cancel)
                try:
                    await work()
                finally:
                    trio.lowlevel.remove_instrument(cancel)
            left = await _left_open(before)
            assert not left, f"{dict(left)} when it is cancelled at checkpoint {number}"
            if not scope.cancel_called:
                return number - 1
    raise AssertionError("it does not end")


async def _left_open(before: Counter[str]) -> Counter[str]:
    """What is open and was not before, once that is nothing, or after a while."""
    with trio.move_on_after(SETTLED_WITHIN):
        while Counter(open_files()) - before:
            await trio.sleep(0.001)
    return Counter(open_files()) - before


@contextmanager
def _no_collection() -> Iterator[None]:
    """The collector would close what has no owner."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
