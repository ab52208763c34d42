"""Many small requests over several connections of one command: at once, bounded, and ended by the first that fails."""

from __future__ import annotations

import threading
import time

import pytest

from twinshare.api.cli import connections
from twinshare.api.cli.connections import ConnectionPool, within_rate
from twinshare.api.cli.node import NodeClient
from twinshare.protocols.errors import GuestRefused, RateLimited

COUNT = 4


def connect() -> NodeClient:
    return NodeClient("http://127.0.0.1:1", None)


def test_so_many_are_done_at_once_each_on_a_connection_of_its_own() -> None:
    at_once, clients = threading.Barrier(COUNT, timeout=60), set()

    def work(client: NodeClient) -> None:
        clients.add(client)
        at_once.wait()

    with ConnectionPool(connect, COUNT) as pool:
        for _ in range(3 * COUNT):
            pool.submit(work)
    assert len(clients) == COUNT


def test_what_fails_first_ends_all() -> None:
    done: list[NodeClient] = []

    def fail(_client: NodeClient) -> None:
        raise GuestRefused("the disk is full")

    def both() -> None:
        with ConnectionPool(connect, 1) as pool:
            pool.submit(fail)
            pool.submit(done.append)

    with pytest.raises(GuestRefused, match="disk is full"):
        both()
    assert done == []


def test_what_fails_last_is_raised_at_the_end() -> None:
    def fail(_client: NodeClient) -> None:
        raise GuestRefused("the disk is full")

    with pytest.raises(GuestRefused, match="disk is full"), ConnectionPool(connect, 1) as pool:
        pool.submit(fail)


def test_what_a_node_refuses_for_its_rate_is_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    refusals = [RateLimited("too many requests", retry_after=2), RateLimited("too many requests", retry_after=1)]

    def work() -> str:
        if refusals:
            raise refusals.pop(0)
        return "done"

    assert within_rate(work) == "done"
    assert waited == [2.0, 1.0]


def test_a_node_that_refuses_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RETRY_WITHIN", -1.0)

    def work() -> None:
        raise RateLimited("too many requests", retry_after=2)

    with pytest.raises(RateLimited):
        within_rate(work)
