"""A request's `traceparent` through the nodes: it is in operations, events and logs, and goes on to peers."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.api.recorded import Answer, recorded_node
from tests.api.served import SPEC, served_in_a_fleet
from tests.api.test_cli import twinshare
from tests.protocols.test_trace import TRACE
from twinshare.agent.testing import open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.api.sync import RESTClient as BlockingClient
from twinshare.protocols.events import EventKind

HEADERS = {"traceparent": TRACE}


async def test_operations_and_events_belong_to_the_trace_here_and_at_a_peer(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far):
        for path, node in (("/api/vm", api.node), ("/api/remote/far/vm", far)):
            async with node.events.subscribe() as feed:
                made = await api.client.post(path, json=SPEC, headers=HEADERS)
                assert made.status_code == 200, made.text
                async for event in feed:
                    if event.type == EventKind.OPERATION_DONE:
                        assert event.data["traceparent"] == TRACE
                        break
            where = path.replace("/vm", "/operations")
            [operation] = (await api.get(where))["operations"]
            assert operation["traceparent"] == TRACE
            assert (await api.get(f"{where}/{operation['id']}"))["traceparent"] == TRACE
        begun = await api.client.post("/api/vm/one@far/start", headers={**HEADERS, "prefer": "respond-async"})
        assert begun.status_code == 202
        where = begun.headers["location"]
        assert where.startswith("/api/remote/far/operations/")
        assert (await api.get(where))["traceparent"] == TRACE


async def test_a_wrong_one_is_no_trace(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, _):
        for wrong in ("x", TRACE + "0", "\xff" * 55):
            made = await api.client.post(
                "/api/vm", json=SPEC | {"name": f"vm-{len(wrong)}"}, headers={b"traceparent": wrong.encode("latin-1")}
            )
            assert made.status_code == 200, made.text
        assert all("traceparent" not in one for one in (await api.get("/api/operations"))["operations"])


async def test_the_log_names_the_trace_of_each_line(tmp_path: Path) -> None:
    options = ["--hypervisor", "fake://", "--log-format", "json", "--log-level", "debug"]
    async with open_agent(tmp_path / "node", *options) as agent:
        async with httpx.AsyncClient(base_url=agent.url, timeout=60) as http:
            assert (await http.get("/api/health", headers=HEADERS)).status_code == 200
            assert (await http.get("/api/capacity")).status_code == 200
        lines = [json.loads(line) for line in agent.said.splitlines() if line.startswith("{")]
    requests = {line["operation"]: line for line in lines if line["event"] == "request"}
    assert (requests["health"]["trace_id"], requests["health"]["span_id"]) == (TRACE[3:35], TRACE[36:52])
    assert "trace_id" not in requests["capacity"]


async def test_clients_send_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_node({"GET /api/vm": [Answer({"vms": []})]}) as node:
        async with RESTClient(node.url) as client:
            client.traceparent = TRACE
            await client.list_vms()
        with BlockingClient(node.url) as blocking:
            blocking.traceparent = TRACE
            blocking.list_vms()
        monkeypatch.setenv("TRACEPARENT", TRACE)
        assert twinshare(node, "vm", "ls").exit_code == 0
    assert [seen.headers.get("traceparent") for seen in node.seen] == [TRACE] * 3
