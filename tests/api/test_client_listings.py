"""Listings by the Python clients: typed keywords that are the node's parameters, and rows page by page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.api.recorded import VM, Answer, recorded_node
from tests.api.test_listings import with_vms
from twinshare.api.listings import ImageFilters, OperationFilters, PeerFilters, VmFilters
from twinshare.api.rest_client import RESTClient
from twinshare.api.sync import RESTClient as BlockingClient
from twinshare.api.twinshare.operations import LISTINGS
from twinshare.protocols.errors import InvalidRequest


@pytest.mark.parametrize(
    ("operation", "keywords"),
    [
        ("list_vms", VmFilters),
        ("list_images", ImageFilters),
        ("list_operations", OperationFilters),
        ("list_peers", PeerFilters),
    ],
)
def test_the_keywords_are_the_parameters_of_the_node(operation: str, keywords: Any) -> None:
    parameters = set(LISTINGS[operation].query.__struct_fields__) - {"limit", "after"}
    assert set(keywords.__annotations__) == parameters


async def test_lists_are_filtered_and_read_page_by_page(tmp_path: Path) -> None:
    async with with_vms(tmp_path) as api:
        async with RESTClient(api.url) as client:
            assert [vm.name for vm in await client.list_vms(label=["app"], sort="-name")] == ["vm-10", "vm-9", "db-1"]
            assert [vm.name async for vm in client.iterate_vms(page_size=1)] == ["db-1", "db-02", "vm-9", "vm-10"]
            assert [vm.name async for vm in client.iterate_vms(page_size=2, name="vm-*")] == ["vm-9", "vm-10"]
            assert [vm.name async for vm in client.iterate_fleet_vms(page_size=3, status="running")] == ["vm-9"]
            kinds = [operation.kind async for operation in client.iterate_operations(page_size=2, kind="create*")]
            assert kinds == ["create_vm"] * 4
            assert [image.name async for image in client.iterate_images(name="disk")] == ["disk"]
            assert [peer async for peer in client.iterate_peers()] == []
            with pytest.raises(InvalidRequest, match="sort"):
                await client.list_vms(sort="colour")

        def read() -> list[list[str]]:
            with BlockingClient(api.url) as blocking:
                return [[vm.name for vm in blocking.list_vms(name="db*")], [vm.name for vm in blocking.iterate_vms()]]

        assert await trio.to_thread.run_sync(read) == [["db-1", "db-02"], ["db-1", "db-02", "vm-9", "vm-10"]]


def test_a_page_is_asked_for_when_its_rows_are_read() -> None:
    pages = [Answer({"vms": [VM, VM], "next": "more"}), Answer({"vms": [VM]})]
    with recorded_node({"GET /api/vm": pages}) as node, BlockingClient(node.url) as client:
        rows = client.iterate_vms(page_size=2)
        assert [next(rows).name, next(rows).name] == ["example-vm"] * 2
        assert len(node.seen) == 1
        assert len(list(rows)) == 1
    assert [seen.target for seen in node.seen] == ["/api/vm?limit=2", "/api/vm?limit=2&after=more"]
