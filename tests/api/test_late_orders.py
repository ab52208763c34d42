"""A client that hangs up: what stands in the journal by then is done, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import spec
from tests.api.served import SPEC, Served, served, served_in_a_fleet
from tests.nodes.test_in_memory import call
from twinshare.agent.node import Node


def request(verb: str, path: str, body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def operations(node: Node, kind: str) -> list[str]:
    return [str(one.state) for one in await node.operations.list() if one.kind == kind]


async def until(node: Node, kind: str, states: list[str]) -> None:
    with trio.fail_after(30):
        while await operations(node, kind) != states:
            await trio.sleep(0.01)


async def until_gone(api: Served) -> None:
    """No connection is open but the one that asks."""
    with trio.fail_after(30):
        while "twinshare_http_connections 1.0" not in (await api.client.get("/metrics")).text:
            await trio.sleep(0.01)


@pytest.mark.parametrize("where", ["here", "through a peer"])
async def test_what_is_in_the_journal_is_done_though_it_had_not_begun(tmp_path: Path, where: str) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far):
        node, root = (api.node, "/api") if where == "here" else (far, "/api/remote/far")
        made = await call(node, "create_vm", spec=spec(start=True))
        async with node.vms.locked(made.id), await trio.open_tcp_stream(*api.address) as client:
            await client.send_all(request("POST", f"{root}/vm/one/stop", {"force": True}))
            await until(node, "stop_vm", ["running"])
        await until(node, "stop_vm", ["done"])
        assert (await call(node, "get_vm", vm="one")).status == "stopped"


async def test_what_has_not_come_to_the_journal_is_not_done_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is gone while the request is looked at, and while its body comes."""
    async with served(tmp_path) as api:
        node = api.node
        looking, find = trio.Event(), node.vms.resolver.find
        gone = trio.Event()

        async def look(ref: str) -> Any:
            looking.set()
            try:
                await trio.sleep_forever()
            finally:
                gone.set()

        monkeypatch.setattr(node.vms.resolver, "find", look)
        create = request("POST", "/api/vm", SPEC)
        async with await trio.open_tcp_stream(*api.address) as client:
            await client.send_all(create)
            await looking.wait()
        with trio.fail_after(30):
            await gone.wait()
        monkeypatch.setattr(node.vms.resolver, "find", find)
        async with await trio.open_tcp_stream(*api.address) as client:
            await client.send_all(create[:-1])
        await until_gone(api)
        assert await operations(node, "create_vm") == []
        assert (await api.client.post("/api/vm", json=SPEC | {"start": True})).status_code == 200
        await until(node, "create_vm", ["done"])


async def test_a_request_that_waited_for_another_is_not_begun_when_its_client_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as api:
        node, begun = api.node, []
        made = await call(node, "create_vm", spec=spec(start=True))
        find = node.vms.resolver.find

        async def look(ref: str) -> Any:
            begun.append(ref)
            return await find(ref)

        monkeypatch.setattr(node.vms.resolver, "find", look)
        stop = request("POST", "/api/vm/one/stop", {"force": True})
        async with node.vms.locked(made.id), await trio.open_tcp_stream(*api.address) as client:
            # While a third waits, the connection is not read on: its end is not seen by that.
            await client.send_all(stop + 2 * request("POST", "/api/vm", SPEC | {"name": "two"}))
            await until(node, "stop_vm", ["running"])
        await until(node, "stop_vm", ["done"])
        await until_gone(api)
        assert begun == []
        assert await operations(node, "create_vm") == ["done"]
