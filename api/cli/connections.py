"""Several connections to a node at once, for the many small requests of one command."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from ...protocols.errors import RateLimited
from .node import NodeClient

IN_FLIGHT = 8
RETRY_WITHIN = 60.0

T = TypeVar("T")

Work = Callable[[NodeClient], None]


def within_rate(work: Callable[[], T]) -> T:
    """Do what a node refuses for the rate of requests again when it allows it. Raises: what `work` raises."""
    give_up_at = time.monotonic() + RETRY_WITHIN
    while True:
        try:
            return work()
        except RateLimited as error:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(float(error.details.get("retry_after", 1.0)))


class ConnectionPool:
    """Does work on so many connections at once. What fails first is raised, and nothing is begun after it."""

    def __init__(self, connect: Callable[[], NodeClient], count: int = IN_FLIGHT) -> None:
        self._clients = [connect() for _ in range(count)]
        self._free: SimpleQueue[NodeClient] = SimpleQueue()
        self._threads = ThreadPoolExecutor(count)
        self._errors: list[BaseException] = []
        for client in self._clients:
            self._free.put(client)

    def submit(self, work: Work) -> None:
        """Begin when a connection is free; wait for one. Raises: what an earlier work has raised."""
        client = self._free.get()
        self._raise_first()
        self._threads.submit(within_rate, partial(work, client)).add_done_callback(partial(self._ended, client))

    def _ended(self, client: NodeClient, work: Future[None]) -> None:
        if not work.cancelled() and (error := work.exception()) is not None:
            self._errors.append(error)
        self._free.put(client)

    def _raise_first(self) -> None:
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what has begun. Raises: what failed in it."""
        self._threads.shutdown(wait=True, cancel_futures=error is not None)
        for client in self._clients:
            client.close()
        if error is None:
            self._raise_first()
