"""Real nodes in hard times: calls cancelled at random."""

import random
from pathlib import Path

import httpx
import pytest
import trio

from tests.nodes.fleet import ask, fleet

pytestmark = pytest.mark.system

AT_ONCE = 32
CALLS = 140
"""Of each of them: together fewer than a peer may make at once, however fast the machine is."""


async def test_random_cancellations_fail_no_other_call_and_keep_the_connection(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as (one, _):
        before = await ask(one, "GET", "/api/p2p/peers/node-2")
        chance, done, failed = random.Random(7), [0, 0], []
        limits = httpx.Limits(max_connections=AT_ONCE)

        async def call(http: httpx.AsyncClient) -> None:
            for _ in range(CALLS):
                timeout = chance.uniform(0, 0.05) if chance.random() < 0.5 else 30
                with trio.move_on_after(timeout) as scope:
                    answer = await http.get("/api/remote/node-2/vm")
                    if answer.status_code != 200:
                        failed.append(answer.text)
                done[scope.cancelled_caught] += 1

        async with httpx.AsyncClient(base_url=one.url, timeout=30, limits=limits) as http, trio.open_nursery() as calls:
            for _ in range(AT_ONCE):
                calls.start_soon(call, http)
        assert failed == []
        assert min(done) > 50, done
        after = await ask(one, "GET", "/api/p2p/peers/node-2")
        assert (after["status"], after["last_seen"] >= before["last_seen"]) == ("online", True)
        heard = (tmp_path / "node-1.log").read_text()
        assert "peer.offline" not in heard
        print(f"\n{done[0]} calls answered, {done[1]} cancelled")
