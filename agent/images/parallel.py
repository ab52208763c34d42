"""Does several things at once, and raises the first failure as itself: no exception group comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from ...protocols.errors import TwinshareError

Item = TypeVar("Item")


async def each(
    items: Iterable[Item] | AsyncIterator[Item], work: Callable[[Item], Awaitable[None]], *, at_once: int
) -> None:
    """Run `work` on every item, on at most `at_once` of them at a time; the first failure cancels the others.

    Raises: what `work` and `items` raise, if it is a TwinshareError or an OSError; anything else is a bug and comes in
    its group.
    """
    waiting = items if isinstance(items, AsyncIterator) else _Steps(items)
    turn = trio.Lock()
    failures: list[TwinshareError | OSError] = []

    async def worker(scope: trio.CancelScope) -> None:
        try:
            while True:
                async with turn:
                    item = await anext(waiting)
                await work(item)
        except StopAsyncIteration:
            return
        except (TwinshareError, OSError) as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker, nursery.cancel_scope)
    if failures:
        raise failures[0]


_ENDS = (TwinshareError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


async def together(*works: Callable[[], Awaitable[None]]) -> None:
    """Run all of them; the first failure cancels the others.

    Raises: what a work raises, if it is a TwinshareError, an OSError or of a stream; anything else is a bug and comes
    in its group.
    """
    failures: list[Exception] = []

    async def run(work: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await work()
        except _ENDS as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(run, work, nursery.cancel_scope)
    if failures:
        raise failures[0]


class _Steps(AsyncIterator[Item]):
    """A plain iterable for `anext`. Not a generator: those want to be closed when they are left early."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    async def __anext__(self) -> Item:
        for item in self._items:
            return item
        raise StopAsyncIteration


class Turns:
    """One task at a time for each key; the others wait for their turn."""

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)
