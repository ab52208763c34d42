"""Bad input, everywhere: JSON always, never a 5xx that is ours, and nothing is changed by what was refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.api import meda_negative, negative, peers_negative
from tests.api.negative import Case
from tests.api.served import SPEC, served_in_a_fleet
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods

TABLE = all_methods(SERVICES)
GROUPS = [
    *(
        getattr(negative, name)
        for name in ("bodies", "fields", "places", "states", "bodies_at_odds", "transfers", "headers")
    ),
    *(getattr(peers_negative, name) for name in ("far", "tickets", "peers", "messages")),
    *(getattr(meda_negative, name) for name in ("bodies", "fields", "places", "states", "transfers", "headers")),
]
# The state of the node alone excuses a 5xx.
EXCUSED = {"insufficient_resources", "MEM_EXHAUSTED"}


async def picture(*nodes: Node) -> Any:
    """Everything that a request could have changed, here and on the peer."""
    return [await picture_of(node) for node in nodes]


async def picture_of(node: Node) -> Any:
    picture: dict[str, Any] = {}
    for name in ("list_vms", "list_images", "list_tokens", "list_operations", "list_peers"):
        rows = msgspec.to_builtins(await node.call(LOCAL_ADMIN, TABLE[name], {}))
        varying = {"observed_at", "uptime", "last_seen"}
        picture[name] = [{key: value for key, value in row.items() if key not in varying} for row in rows]
    # An operation that was refused while it worked stays in the journal, as failed.
    picture["list_operations"] = [row for row in picture["list_operations"] if row["state"] != "failed"]
    picture["forwards"] = msgspec.to_builtins(await node.call(LOCAL_ADMIN, TABLE["list_forwards"], {"vm": "one"}))
    picture["tunnels"] = [list(key) for key in node.tunnels.kept]
    picture["messages"] = [event.data for event in node.events.kept if event.type == "p2p.message"]
    return picture


def request(case: Case) -> bytes:
    sent = {"host": "localhost", **case.headers, "connection": "close"}
    if case.body:
        sent["content-length"] = str(len(case.body))
    head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    return f"{case.verb} {case.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + case.body


def answer(heard: bytes) -> httpx.Response:
    head, _, body = heard.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


def faults(case: Case, got: httpx.Response) -> Iterator[str]:
    if got.headers.get("content-type") != "application/json":
        yield f"not JSON: {got.text[:200]}"
        return
    body = got.json()
    if (got.status_code, body.get("code")) != (case.status, case.code):
        yield f"{got.status_code} {body}"
    if got.status_code >= 500 and body["code"] not in EXCUSED:
        yield "a 5xx"
    if case.target.startswith("/api/v1/") and body.get("details", {}).get("message") != body["error"]:
        yield f"not Meda's body: {body}"
    if body.keys() != {"error", "code", "details"} or not isinstance(body["error"], str) or not body["error"]:
        yield f"not the documented body: {body}"
        return
    if case.path is not None and body["details"].get("path") != case.path:
        yield f"names {body['details']} instead of {case.path}"
    if case.reason is not None and body["details"].get("reason") != case.reason:
        yield f"reason {body['details'].get('reason')} instead of {case.reason}"
    if case.status == 405 and not got.headers.get("allow"):
        yield "no Allow"
    if case.status == 401 and not got.headers.get("www-authenticate"):
        yield "no WWW-Authenticate"
    if re.search(r"Traceback|/work/|/tmp/|/root/|/home/|site-packages", body["error"]):
        yield f"tells too much: {body['error']}"


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group.__module__.rpartition('.')[2]}.{group.__name__}")
async def test_refused(group: Callable[[], Iterator[Case]], tmp_path: Path) -> None:
    found: list[str] = []
    async with served_in_a_fleet(tmp_path) as (api, far):
        for node, path in ((api.node, "/api/vm"), (far, "/api/remote/far/vm")):
            if group.__name__ in {"states", "far"}:
                await node.import_image(LOCAL_ADMIN, "big", sparse())
            for more in ({}, {"name": "run", "start": True}):
                assert (await api.client.post(path, json={**SPEC, **more})).status_code == 200
        before = await picture(api.node, far)
        for case in group():
            got = answer(await trio.to_thread.run_sync(api.raw, request(case)))
            found += [f"{case.name}: {fault}" for fault in faults(case, got)]
            if (after := await picture(api.node, far)) != before:
                found.append(f"{case.name}: changed something")
                before = after
    assert not found, "\n".join(found)


async def sparse() -> Any:
    """A disk of a GiB and a bit."""
    for _ in range(1025):
        yield bytes(1 << 20)


def test_there_are_enough_cases() -> None:
    cases = [(group.__module__, case.name) for group in GROUPS for case in group()]
    assert len(cases) >= 1200
    assert len(set(cases)) == len(cases)
