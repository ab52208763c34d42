"""Every route of the guide's "VM Management" and "Error Handling", with exact bodies, on the in-memory hypervisor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.api.served import SPEC, served

VM = {
    "id": str, "name": str, "status": str, "cpu_cores": int, "memory": int, "disk_size": int, "hypervisor": str,
    "network": str, "vnc_port": (int, type(None)), "created_at": str,
}  # fmt: skip


def fits(body: Mapping[str, Any], documented: Mapping[str, Any]) -> None:
    """Every documented key is there, with its documented type."""
    for key, kind in documented.items():
        assert key in body, key
        assert isinstance(body[key], kind), (key, body[key])
    if "created_at" in documented:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", body["created_at"])


async def test_the_life_of_a_vm(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        assert await api.get("/api/vm") == {"vms": []}
        made = (await api.client.post("/api/vm", json={**SPEC, "network": "default", "hypervisor": "kvm"})).json()
        fits(made, VM)
        assert (made["status"], made["vnc_port"], made["memory"]) == ("stopped", None, 64)
        shown = await api.get("/api/vm/one")
        fits(shown, VM)
        assert shown["id"] == made["id"]
        assert (await api.get(f"/api/vm/{made['id']}"))["name"] == "one"
        [listed] = (await api.get("/api/vm"))["vms"]
        fits(listed, VM)

        started = (await api.client.post("/api/vm/one/start")).json()
        fits(started, {"success": bool, "name": str, "status": str})
        assert (started["success"], started["name"], started["status"]) == (True, "one", "running")
        assert "vnc_port" in started
        fits(await api.get("/api/vm/one"), {**VM, "uptime": int})

        stopped = await api.client.post("/api/vm/one/stop", json={"force": True})
        assert stopped.status_code == 200
        fits(stopped.json(), {"success": bool, "name": str, "status": str})
        assert stopped.json()["status"] == "stopped"
        gone = await api.client.request("DELETE", "/api/vm/one", json={"delete_disk": True})
        assert gone.status_code == 200
        fits(gone.json(), {"success": bool, "name": str})
        assert (gone.json()["success"], gone.json()["name"]) == (True, "one")
        assert await api.get("/api/vm") == {"vms": []}


async def test_the_defaults_of_the_guide(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        made = (await api.client.post("/api/vm", json={"name": "new-vm", "image": "disk"})).json()
        documented = {"cpu_cores": 2, "memory": 2048, "disk_size": 20, "network": "default"}
        assert {key: made[key] for key in documented} == documented


async def test_errors(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        missing = await api.client.get("/api/vm/non-existent-vm")
        assert missing.status_code == 404
        assert missing.json()["error"] == "Virtual machine 'non-existent-vm' not found"
        assert (await api.client.post("/api/vm", json={"image": "disk"})).status_code == 400
        bad = await api.client.post("/api/vm", content=b"{", headers={"content-type": "application/json"})
        assert bad.status_code == 400
        stopped = await api.client.get("/api/remote/somebody/vm")
        assert (stopped.status_code, stopped.json()["code"]) == (503, "p2p_stopped")
        assert stopped.json()["error"] == "P2P services are not running"


async def test_root(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        root = await api.get("/")
        assert root["name"] == "AI Environment Manager API"
        assert root["version"] == api.node.version
        assert root["endpoints"][:3] == ["/api/vm", "/api/p2p", "/api/remote"]


async def test_detached(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        headers = {"prefer": "respond-async", "idempotency-key": "make-one"}
        answer = await api.client.post("/api/vm", json=SPEC, headers=headers)
        assert answer.status_code == 202
        operation = answer.json()
        assert answer.headers["location"] == f"/api/operations/{operation['id']}"
        assert operation["idempotency_key"] == "make-one"
        ended = await api.get(answer.headers["location"] + "/wait?timeout=5")
        assert (ended["state"], ended["result"]["name"]) == ("done", "one")
        again = await api.client.post("/api/vm", json=SPEC, headers={"idempotency-key": "make-one"})
        assert (again.status_code, again.json()["id"]) == (200, ended["result"]["id"])
        other = await api.client.post("/api/vm", json=SPEC | {"memory": 65}, headers={"idempotency-key": "make-one"})
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")


async def test_upload(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        disk = bytes(1 << 20)
        headers = {"content-type": "application/octet-stream"}
        made = await api.client.post("/api/image/import?name=blank:v1", content=disk, headers=headers)
        assert made.status_code == 200, made.text
        assert (made.json()["name"], made.json()["tag"], made.json()["size"]) == ("blank", "v1", 1 << 20)
        assert {image["name"] for image in (await api.get("/api/image"))["images"]} == {"blank", "disk"}
        path, unknown = "/api/image/import?name=own:v1", bytes(range(256)) * 400
        refused = await api.client.post(path, content=unknown, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
        taken = await api.client.post(f"{path}&raw=true", content=unknown, headers=headers)
        assert (taken.status_code, taken.json()["labels"]) == (200, {"raw": "true"})
        assert (await api.get("/api/image/blank%3Av1"))["name"] == "blank"
