"""The parameters of listings: each of them, paging while rows come and go, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.api.served import SPEC, TABLE, Served, served, served_in_a_fleet
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.api.twinshare.listing import Listing
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.bodies import VmList, present

MADE: dict[str, dict[str, Any]] = {
    "vm-10": {"labels": {"app": "web", "tier": "front"}, "memory": 64},
    "vm-9": {"labels": {"app": "web"}, "memory": 96, "start": True},
    "db-1": {"labels": {"app": "store"}, "memory": 80},
    "db-02": {"memory": 72},
}
FOUND: dict[str, list[str]] = {
    "sort=name": ["db-1", "db-02", "vm-9", "vm-10"],
    "sort=-name": ["vm-10", "vm-9", "db-02", "db-1"],
    "sort=memory": ["vm-10", "db-02", "db-1", "vm-9"],
    "sort=-memory&limit=2": ["vm-9", "db-1"],
    "sort=created_at&name=db-02": ["db-02"],
    "sort=uptime&limit=1": ["vm-9"],
    "sort=-uptime&limit=1": ["vm-9"],
    "limit=1": ["db-1"],
    "limit=1000": ["db-1", "db-02", "vm-9", "vm-10"],
    "status=running": ["vm-9"],
    "status=stopped&name=vm*": ["vm-10"],
    "name=vm-9": ["vm-9"],
    "name=*-1*": ["db-1", "vm-10"],
    "name=vm-%3F": [],
    "name=[v]m-9": [],
    "owner=local": ["db-1", "db-02", "vm-9", "vm-10"],
    "owner=somebody": [],
    "node=here&limit=1": ["db-1"],
    "node=elsewhere": [],
    "guest_ip=null": [],
    "label=app": ["db-1", "vm-9", "vm-10"],
    "label=app=web": ["vm-9", "vm-10"],
    "label=app=*o*": ["db-1"],
    "label=app=web&label=tier=front": ["vm-10"],
    "label=app=web&label=tier=back": [],
}


async def create(api: Served, name: str, path: str = "/api/vm", **more: Any) -> None:
    answer = await api.client.post(path, json={**SPEC, "name": name, **more})
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def with_vms(folder: Path) -> AsyncIterator[Served]:
    async with served(folder) as api:
        for name, more in MADE.items():
            await create(api, name, **more)
        yield api


async def names(api: Served, query: str, path: str = "/api/vm") -> list[str]:
    body = await api.get(f"{path}?{query}")
    [key, *_] = body
    return [row["name"] for row in body[key]]


async def pages(api: Served, path: str, key: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Every page of a listing; `path` has a query."""
    after = ""
    while True:
        body = await api.get(f"{path}{after}")
        yield body[key]
        if "next" not in body:
            return
        after = f"&after={body['next']}"


async def test_without_parameters_the_answer_is_what_it_was(tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        for name, path in (("list_vms", "vm"), ("list_images", "image"), ("list_operations", "operations")):
            rows = await api.node.call(LOCAL_ADMIN, TABLE[name], {})
            body = msgspec.to_builtins(present(TABLE[name], rows))
            got = await api.get(f"/api/{path}")
            if name != "list_vms":  # their uptime goes on
                assert (await api.client.get(f"/api/{path}")).content == msgspec.json.encode(present(TABLE[name], rows))
            [(key, found)] = got.items()
            assert [row.keys() for row in found] == [row.keys() for row in body[key]]
        assert (await api.get("/api/fleet/vm")).keys() == {"vms", "unreachable"}
        assert (await api.get("/api/operations?state=done")).keys() == {"operations"}


async def test_vms_by_each_parameter(tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        for path in ("/api/vm", "/api/fleet/vm"):
            assert {query: await names(api, query, path) for query in FOUND} == FOUND


@pytest.mark.parametrize("sort", ["name", "-name", "status", "-created_at", "uptime", "-uptime"])
async def test_paging_meets_each_row_once_while_others_come_and_go(sort: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for number in range(6):
            await create(api, f"vm-{number}", start=number == 3)
        met: list[str] = []
        async for rows in pages(api, f"/api/vm?limit=2&sort={sort}", "vms"):
            assert len(rows) <= 2
            met += [row["name"] for row in rows]
            if len(met) == 2:
                assert (await api.client.delete(f"/api/vm/{met[1]}", params={})).status_code in {200, 409}
                for name in ("a-first", "vm-2-more", "z-last"):
                    await create(api, name)
        assert len(met) == len(set(met))
        assert {f"vm-{number}" for number in range(6)} <= set(met)


async def test_operations_are_paged_newest_first_and_state_goes_on_working(tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        every = (await api.get("/api/operations"))["operations"]
        met = [row async for rows in pages(api, "/api/operations?limit=2&state=done", "operations") for row in rows]
        assert [row["id"] for row in met] == [row["id"] for row in every if row["state"] == "done"]
        assert len(met) >= len(MADE)
        targets = (await api.get("/api/operations?state=done&kind=create_vm&target=vm*"))["operations"]
        assert [row["target"] for row in targets] == ["vm-9", "vm-10"]
        assert not (await api.get("/api/operations?state=failed&limit=2"))["operations"]


async def test_images_and_peers_and_what_peers_have(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far):
        await far.import_image(LOCAL_ADMIN, "disk-2", pieces(raw_disk(2)))
        for name in ("vm-10", "vm-9"):
            await create(api, name, "/api/remote/far/vm", labels={"app": name})
        remote = "/api/remote/far"
        assert await names(api, "sort=-name&limit=1", f"{remote}/image") == ["disk-2"]
        assert await names(api, "name=*k", f"{remote}/image") == await names(api, "name=disk", "/api/image") == ["disk"]
        assert [row["name"] async for rows in pages(api, f"{remote}/vm?limit=1", "vms") for row in rows] == [
            "vm-9",
            "vm-10",
        ]
        assert await names(api, "label=app=vm-9", f"{remote}/vm") == ["vm-9"]
        assert await names(api, "node=far&limit=1&sort=-name", "/api/fleet/vm") == ["vm-10"]
        done = (await api.get(f"{remote}/operations?state=done&limit=1"))["operations"]
        assert [row["target"] for row in done] == ["vm-9"]
        assert await names(api, "status=online&name=f*", "/api/p2p/peers") == ["far"]
        assert await names(api, "name=nobody", "/api/p2p/peers") == []


async def refusal(api: Served, path: str) -> str:
    answer = await api.client.get(path)
    assert answer.status_code == 400, (path, answer.text)
    body = answer.json()
    assert body["code"] == "invalid_request"
    return str(body["details"]["path"])


@pytest.mark.parametrize("path", ["/api/vm", "/api/fleet/vm", "/api/operations", "/api/image", "/api/p2p/peers"])
async def test_what_is_wrong_is_named(path: str, tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        wrong = [
            ("nope=1", "nope"), ("labels=a", "labels"), ("limit=0", "limit"), ("limit=1001", "limit"),
            ("limit=x", "limit"), ("limit=null", "limit"), ("sort=nope", "sort"), ("sort=", "sort"),
            ("sort=--id", "sort"),
            ("sort=id%0A", "sort"), ("sort=labels", "sort"), ("after=", "after"), ("after=x", "after"),
            ("after=%C3%A9", "after"), ("after=e30=", "after"), ("id=", "id"), ("limit=1&limit=2", "query"),
            ("sort=%FF", "query"),
        ]  # fmt: skip
        if path == "/api/image":
            wrong = [(query.replace("id=", "digest="), name.replace("id", "digest")) for query, name in wrong]
        assert [await refusal(api, f"{path}?{query}") for query, _ in wrong] == [name for _, name in wrong]


async def test_a_cursor_is_good_for_its_own_listing_and_sort_alone(tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        cursor = (await api.get("/api/vm?limit=1&sort=name"))["next"]
        assert await names(api, f"after={cursor}") == ["db-02", "vm-9", "vm-10"], "the default is by name"
        assert await names(api, f"after={cursor}&name=vm*") == ["vm-9", "vm-10"]
        for query in (f"sort=-name&after={cursor}", f"sort=memory&after={cursor}", f"after={cursor[:-4]}"):
            assert await refusal(api, f"/api/vm?{query}") == "after"
        assert await refusal(api, f"/api/image?after={cursor}") == "after"
        for query, name in (("status=nope", "status"), ("label=%3Dx", "label[0]"), ("label=", "label[0]")):
            assert await refusal(api, f"/api/vm?{query}") == name


async def test_openapi_has_the_parameters(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        paths = (await api.get("/api/openapi.json"))["paths"]
    for path in (
        "/api/vm",
        "/api/remote/{peer}/vm",
        "/api/fleet/vm",
        "/api/operations",
        "/api/image",
        "/api/p2p/peers",
    ):
        parameters = {one["name"]: one for one in paths[path]["get"]["parameters"]}
        assert {"limit", "after", "sort"} <= parameters.keys(), path
        assert not any(one["required"] for one in parameters.values() if one["in"] == "query")
    assert {"status", "name", "owner", "node", "label"} <= {
        one["name"] for one in paths["/api/vm"]["get"]["parameters"]
    }


def test_a_pattern_of_stars_takes_no_time() -> None:
    _, page = Listing(VmList).read([("name", "*a" * 100 + "b")])
    assert page is not None
    [match] = page.matches
    row = msgspec.defstruct("Row", [("name", str)])(name="a" * 10000)
    assert not match(row)
