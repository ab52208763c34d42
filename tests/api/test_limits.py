"""Token buckets and the limit of connections, by themselves."""

from __future__ import annotations

from twinshare.api.rest.rate_limit import TokenBuckets
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


def test_a_connection_limit() -> None:
    limit = ConnectionLimit(total=3, per_source=2)
    assert [limit.take("a"), limit.take("a"), limit.take("a")] == [True, True, False]
    assert [limit.take("b"), limit.take("c")] == [True, False]
    limit.give("a")
    assert limit.take("c")
    assert limit.count == 3
