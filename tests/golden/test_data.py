"""The agent starts on the data directory of the first version, finishes what was under way, and has lost nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from tests.golden.unpack import GOLDEN, unpack
from twinshare.agent.testing import AgentProcess

# What the operations that were under way are to come to, and the VM of each after it: its status, None when it is gone.
UNDER_WAY = {
    "create-pending": ("done", "stopped"),
    "create-disk": ("done", "running"),
    "create-seed": ("done", "stopped"),
    "create-define": ("done", "running"),
    "create-start": ("done", "running"),
    "create-undo": ("failed", None),
    "start": ("done", "running"),
    "stop": ("done", "stopped"),
    "restart": ("done", "running"),
    "delete-destroy": ("done", None),
    "delete-files": ("done", None),
    "delete-undefine": ("done", None),
    "forward": ("done", "running"),
}
ASKED = {
    "vms": "/api/vm",
    "images": "/api/image",
    "operations": "/api/operations",
    "tokens": "/api/tokens",
    "peers": "/api/p2p/peers",
    "info": "/api/p2p/info",
    "forwards": "/api/vm/kept/port-forward",
    "forward": "/api/vm/forward/port-forward",
}
PEER = "12D3KooWB4m5qB4SsiSYUhHdgjv1xPqaeewM8L79qHAxeeGHupyR"


def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((GOLDEN / "v1" / f"{name}.json").read_text())
    return found


async def live(data: Path, left_alone: Collection[str] = ()) -> dict[str, Any]:
    """One life on the directory: everything that REST tells when nothing but `left_alone` is under way any more."""
    agent = AgentProcess(
        data, ["--api", "127.0.0.1:0"], {"TWINSHARE_P2P_ENABLED": "true"},
        program=[sys.executable, "-m", "twinshare", "agent", "--config", str(data / "twinshare.toml")],
    )  # fmt: skip
    await agent.start()
    try:
        async with httpx.AsyncClient(base_url=agent.url, timeout=30) as http:
            with trio.fail_after(30):
                while await _under_way(http) - {*left_alone}:
                    await trio.sleep(0.02)
            seen = {name: (await http.get(path)).json() for name, path in ASKED.items()}
            body = {"name": "kept", "image": "disk", "cpu_cores": 1, "memory": 64, "disk_size": 1, "start": True,
                    "autostart": True, "labels": {"a": "b"}}  # fmt: skip
            key = {"Idempotency-Key": "golden-key"}
            seen["again"] = (await http.post("/api/vm", json=body, headers=key)).json()
            seen["other"] = (await http.post("/api/vm", json=body | {"memory": 128}, headers=key)).status_code
            seen["fsck"] = (await http.post("/api/image/fsck")).json()
            seen["tunnels"] = (await http.get(f"/api/remote/{PEER}/vm/there/port-forward")).json()
            seen["all events"] = await trio.to_thread.run_sync(_events, agent.url, len(rows("events")) + 1)
            seen["events"] = seen["all events"][:-1]
            token = {"Authorization": "Bearer golden-admin-token"}
            seen["admin"] = (await http.get("/api/tokens", headers=token)).status_code
    finally:
        await agent.stop()
    seen["log"] = agent.said
    return seen


async def _under_way(http: httpx.AsyncClient) -> set[str]:
    answers = [await http.get("/api/operations", params={"state": state}) for state in ("pending", "running")]
    return {each["id"] for answer in answers for each in answer.json()["operations"]}


def _events(url: str, number: int) -> list[dict[str, Any]]:
    """The oldest events that are kept (blocking), without the one that says that numbers are missing."""
    found: list[dict[str, Any]] = []
    with httpx.stream("GET", f"{url}/api/events", headers={"Last-Event-ID": "0"}, timeout=20) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:") and (event := json.loads(line.removeprefix("data:")))["type"] != "reset":
                found.append(event)
            if len(found) >= number:
                break
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("golden") / "node")


@pytest.fixture(scope="module")
def seen(data: Path) -> dict[str, Any]:
    return trio.run(live, data)


def test_what_was_under_way_is_finished_or_undone(seen: dict[str, Any]) -> None:
    recorded = {row["id"]: row for row in rows("journal")}
    ended = {each["id"]: each for each in seen["operations"]["operations"]}
    under_way = {row["target"]: id for id, row in recorded.items() if row["state"] in {"pending", "running"}}
    assert set(under_way) == set(UNDER_WAY)
    vms = {vm["name"]: vm["status"] for vm in seen["vms"]["vms"]}
    for target, (state, status) in UNDER_WAY.items():
        assert (target, ended[under_way[target]]["state"]) == (target, state)
        assert (target, vms.get(target)) == (target, status)
    assert set(vms) == {"kept", "cancelled"} | {name for name, (_, status) in UNDER_WAY.items() if status}


def test_ended_operations_are_listed_with_their_results(seen: dict[str, Any]) -> None:
    last = {row["id"]: row for row in rows("journal")}
    ended = {id: row for id, row in last.items() if row["state"] in {"done", "failed", "cancelled"}}
    assert {row["state"] for row in ended.values()} == {"done", "failed", "cancelled"}
    found = {each["id"]: each for each in seen["operations"]["operations"]}
    for id, row in ended.items():
        each = found[id]
        assert (each["kind"], each["target"], each["state"]) == (row["kind"], row["target"], row["state"])
        assert (each["result"] is None) == (row["result"] is None)
        assert (each["error"] is None) == (row["error"] is None)
        assert each["idempotency_key"] == row["key"]


def test_the_same_request_with_its_old_key_is_the_same_operation(seen: dict[str, Any]) -> None:
    kept = next(vm for vm in seen["vms"]["vms"] if vm["name"] == "kept")
    assert seen["again"]["id"] == kept["id"]
    assert seen["other"] == 409


def test_forwards_and_tunnels_are_kept(seen: dict[str, Any]) -> None:
    [forward] = seen["forwards"]["forwards"]
    assert (forward["guest_port"], forward["active"]) == (80, True)
    assert [forward["guest_port"] for forward in seen["forward"]["forwards"]] == [80]
    [tunnel] = seen["tunnels"]["forwards"]
    assert tunnel["guest_port"] == 80


def test_images_are_whole(seen: dict[str, Any]) -> None:
    assert [(image["name"], image["damaged"]) for image in seen["images"]["images"]] == [("disk", False)]
    assert seen["fsck"]["findings"] == []


def test_identity_members_and_tokens_are_kept(seen: dict[str, Any]) -> None:
    member = next(row for row in rows("mesh") if row["kind"] == "member" and row["key"] != PEER)
    assert seen["info"]["id"] == member["key"]
    assert PEER in {peer["id"] for peer in seen["peers"]["peers"]}
    assert [(token["name"], token["role"]) for token in seen["tokens"]["tokens"]] == [("golden", "operator")]
    assert seen["admin"] == 200


def test_events_go_on_after_the_kept_ones(seen: dict[str, Any]) -> None:
    kept = [msgspec.msgpack.decode(bytes.fromhex(row["event"]["hex"])) for row in rows("events")]
    assert [event["id"] for event in seen["events"]] == [event["id"] for event in kept]
    assert [event["type"] for event in seen["events"]] == [event["type"] for event in kept]
    assert [event["data"] for event in seen["events"]] == [event["data"] for event in kept]


def test_the_audit_log_is_one_chain_with_the_old_rows(seen: dict[str, Any], data: Path) -> None:
    last = rows("audit")[-1]
    row = f"{last['number']}:{last['hash']['hex']}"
    command = [sys.executable, "-m", "twinshare", "audit", "verify", "--seen", row]
    environment = os.environ | {"TWINSHARE_DATA_DIR": str(data)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > last["number"]


def test_nothing_was_logged_as_an_error(seen: dict[str, Any]) -> None:
    assert " error " not in seen["log"].lower().replace("[error", " error "), seen["log"]
    assert "Traceback" not in seen["log"]
