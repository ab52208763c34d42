"""Which route serves a path: segment by segment, percent-decoded on its own, literals first."""

from __future__ import annotations

import pytest

from twinshare.api.server.limits import Buckets, Shares
from twinshare.api.server.router import Route, Router
from twinshare.protocols.errors import InvalidRequest, MethodNotAllowed, NotFound


async def nothing(_: object) -> None:
    """A view for routes that are only matched."""


def router(*routes: str) -> Router:
    parts = ((one, *one.split(" ", 1)) for one in routes)
    return Router(Route(verb, path, one, nothing) for one, verb, path in parts)


TABLE = router(
    "GET /vm", "POST /vm", "GET /vm/<vm>", "DELETE /vm/<vm>", "POST /vm/<vm>/start", "GET /image/<image>",
    "POST /image/build-tiny", "GET /remote/<peer>/vm/<vm>",
)  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "path", "name", "params"),
    [
        ("GET", b"/vm", "GET /vm", {}),
        ("GET", b"/vm/one", "GET /vm/<vm>", {"vm": "one"}),
        ("POST", b"/vm/one/start", "POST /vm/<vm>/start", {"vm": "one"}),
        ("GET", b"/vm/a%2Fb", "GET /vm/<vm>", {"vm": "a/b"}),
        ("GET", b"/vm/a%2Fstart", "GET /vm/<vm>", {"vm": "a/start"}),
        ("GET", b"/vm/%C3%A9+%25", "GET /vm/<vm>", {"vm": "é+%"}),
        ("GET", b"/image/localhost%3A5000%2Fx%3Alatest", "GET /image/<image>", {"image": "localhost:5000/x:latest"}),
        ("GET", b"/image/org%2Fname%40sha256:00", "GET /image/<image>", {"image": "org/name@sha256:00"}),
        ("POST", b"/image/build-tiny", "POST /image/build-tiny", {}),
        ("GET", b"/image/build-tiny", "GET /image/<image>", {"image": "build-tiny"}),
        ("GET", b"/remote/p/vm/v", "GET /remote/<peer>/vm/<vm>", {"peer": "p", "vm": "v"}),
    ],
)
def test_matches(verb: str, path: bytes, name: str, params: dict[str, str]) -> None:
    route, found = TABLE.match(verb, path)
    assert (route.name, found) == (name, params)


@pytest.mark.parametrize("path", [b"/", b"/vm/", b"/vm//start", b"/v", b"/vm/a/b", b"/remote//vm/v", b"/VM"])
def test_nothing_there(path: bytes) -> None:
    with pytest.raises(NotFound):
        TABLE.match("GET", path)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (b"/vm", ["GET", "HEAD", "OPTIONS", "POST"]),
        (b"/vm/one", ["DELETE", "GET", "HEAD", "OPTIONS"]),
        (b"/vm/one/start", ["OPTIONS", "POST"]),
        (b"/image/build-tiny", ["GET", "HEAD", "OPTIONS", "POST"]),
    ],
)
def test_other_verbs(path: bytes, allow: list[str]) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        TABLE.match("PATCH", path)
    assert caught.value.details["allow"] == allow == TABLE.allowed(path)


@pytest.mark.parametrize("path", [b"vm", b"*", b"http://localhost/vm", b"/vm/%ff", b"/vm/" + b"a" * 9000])
def test_no_path(path: bytes) -> None:
    with pytest.raises(InvalidRequest):
        TABLE.match("GET", path)


def test_a_route_is_given_once() -> None:
    with pytest.raises(ValueError, match="served twice"):
        router("GET /vm", "GET /vm")


def test_a_bucket_fills_with_time() -> None:
    buckets = Buckets(rate=2.0, burst=4)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [0.0] * 4
    assert buckets.take("a", 0.0) == 0.5
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.5) == 0.0
    assert buckets.take("a", 0.5) > 0
    assert [buckets.take("a", 100.0) for _ in range(5)][-1] > 0
    buckets.fine("b", 0.0, 100.0)
    assert buckets.take("b", 0.0) == 0.5


def test_buckets_do_not_grow_without_end() -> None:
    buckets = Buckets(rate=1.0, burst=1, keys=10)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets._state) == 10


def test_shares() -> None:
    shares = Shares(total=3, per_source=2)
    assert [shares.take("a"), shares.take("a"), shares.take("a")] == [True, True, False]
    assert [shares.take("b"), shares.take("c")] == [True, False]
    shares.give("a")
    assert shares.take("c")
    assert shares.count == 3
