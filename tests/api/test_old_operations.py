"""Operations beyond the newest thousand: each is met once, here and through a peer, however they are filtered."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.api.served import SPEC, Served, served, served_in_a_fleet
from twinshare.agent.node import Node
from twinshare.api.rest_client import RESTClient
from twinshare.api.twinshare import newest_first
from twinshare.protocols.operation import MAX_LISTED

COUNT = 2 * MAX_LISTED + 50
RARE = 500
COPY = """
INSERT INTO operations SELECT ?, ?, ?, target, principal, request, state, step, notes, result, error, ?, updated_at
FROM operations LIMIT 1
"""


async def with_history(api: Served, node: Node, path: str) -> list[str]:
    """Give a node a long history; return the IDs of its operations, the newest first. Every `RARE`th is a start."""
    assert (await api.client.post(path, json=SPEC)).status_code == 200
    now = time.time()
    kinds = ["create_vm" if number % RARE else "start_vm" for number in range(COUNT)]
    rows = [(f"old-{n}", f"key-{n}", kind, now - 60 - n // 2 * 1e-3) for n, kind in enumerate(kinds)]

    def write(db: sqlite3.Connection) -> None:
        db.executemany(COPY, rows)

    await node.operations._store._state.transact(write)
    [newest] = [one.id for one in await node.operations.list() if not one.id.startswith("old")]
    return [newest, *(row[0] for row in rows)]


async def pages(api: Served, path: str, **query: Any) -> AsyncIterator[list[str]]:
    while True:
        body = await api.get(path, params=query)
        yield [row["id"] for row in body["operations"]]
        if "next" not in body:
            return
        query["after"] = body["next"]


async def test_every_operation_is_met_once(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        ids = await with_history(api, api.node, "/api/vm")
        found = [page async for page in pages(api, "/api/operations")]
        assert [len(page) for page in found] == [MAX_LISTED, COUNT + 1 - MAX_LISTED]
        assert sorted(chain.from_iterable(found)) == sorted(ids)
        met = [page async for page in pages(api, "/api/operations", limit=700, state="done")]
        assert [len(page) for page in met] == [700, 700, COUNT + 1 - 1400]
        assert sorted(chain.from_iterable(met)) == sorted(ids)
        assert [page async for page in pages(api, "/api/operations", kind="start*")] == [
            [f"old-{number}" for number in range(0, COUNT, RARE)]
        ]
        async with RESTClient(api.url) as client:
            assert sorted([one.id async for one in client.iterate_operations()]) == sorted(ids)
        one = await api.get("/api/operations/old-1500")
        older = await api.get("/api/operations", params={"until": one["created_at"]})
        assert sorted(row["id"] for row in older["operations"]) == sorted(ids[1501:])
        assert (await api.get("/api/operations", params={"sort": "created_at", "limit": 1}))["operations"][0]["id"] in {
            f"old-{COUNT - 1}", f"old-{COUNT - 2}"
        }  # fmt: skip


async def test_one_answer_looks_at_so_many_and_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest_first, "MAX_READS", 1)
    async with served(tmp_path) as api:
        await with_history(api, api.node, "/api/vm")
        found = [page async for page in pages(api, "/api/operations", kind="start*", limit=100)]
        assert [len(page) for page in found] == [2, 2, 1]
        assert len({id for page in found for id in page}) == 5


async def test_through_a_peer(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far):
        ids = await with_history(api, far, "/api/remote/far/vm")
        with trio.fail_after(60):
            met = [page async for page in pages(api, "/api/remote/far/operations", limit=1000)]
        assert [len(page) for page in met] == [1000, 1000, COUNT + 1 - 2000]
        assert sorted(chain.from_iterable(met)) == sorted(ids)
        [first, *_] = [page async for page in pages(api, "/api/remote/far/operations")]
        assert len(first) == MAX_LISTED


@pytest.mark.parametrize(
    "query",
    ["until=never", "until=2026-01-01T00:00:00", "until=1e400", "after=WyItY3JlYXRlZF9hdCIsMWUzMDAsWyJ4IiwieSJdXQ=="],
)
async def test_what_is_no_time_is_refused(query: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        answer = await api.client.get(f"/api/operations?{query}")
        assert answer.status_code == 400, answer.text
        assert answer.json()["details"]["path"].partition(".")[0] in {"query", "after", "until"}
