"""Token buckets and the limit of connections, by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from twinshare.agent.token_buckets import TokenBuckets
from twinshare.api.server.connection_limit import ConnectionLimit


def test_a_bucket_fills_with_time() -> None:
    buckets = TokenBuckets(rate=2.0, burst=4)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [0.0] * 4
    assert buckets.take("a", 0.0) == 0.5
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.5) == 0.0
    assert buckets.take("a", 0.5) > 0
    assert [buckets.take("a", 100.0) for _ in range(5)][-1] > 0
    buckets.fine("b", 0.0, 100.0)
    assert buckets.take("b", 0.0) == 0.5


def test_buckets_do_not_grow_without_end() -> None:
    buckets = TokenBuckets(rate=1.0, burst=1, keys=10)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets._state) == 10


def test_the_bucket_unused_for_the_longest_is_forgotten() -> None:
    """Forgetting fills a bucket: who comes often must not get that by others' coming."""
    buckets = TokenBuckets(rate=1.0, burst=1, keys=2)
    for key in ("often", "once", "often", "new"):
        buckets.take(key, 0.0)
    assert buckets.left("often", 0.0) == 0
    assert buckets.left("new", 0.0) == 0
    assert buckets.left("once", 0.0) == 1


@dataclass(eq=False)
class Connection:
    source: str
    is_known: bool = True


def test_connections_are_shared_between_sources() -> None:
    limit = ConnectionLimit(total=3, per_source=2, strangers=3)
    first = Connection("a")
    assert [limit.take(first), limit.take(Connection("a")), limit.take(Connection("a"))] == [True, True, False]
    assert [limit.take(Connection("b")), limit.take(Connection("c"))] == [True, False]
    limit.give(first)
    assert limit.take(Connection("c"))
    assert limit.count == 3


def test_strangers_share_a_part_until_they_are_known() -> None:
    limit = ConnectionLimit(total=8, per_source=8, strangers=2)
    strangers = [Connection("uid 1", is_known=False), Connection("uid 2", is_known=False)]
    assert all(limit.take(stranger) for stranger in strangers)
    assert not limit.take(Connection("uid 3", is_known=False))
    assert limit.take(Connection("uid 0"))
    strangers[0].is_known = True
    assert limit.take(Connection("uid 3", is_known=False))
    assert not limit.take(Connection("uid 4", is_known=False))
    limit.give(strangers[1])
    assert limit.take(Connection("uid 4", is_known=False))
