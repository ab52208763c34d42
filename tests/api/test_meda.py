"""Every route of Meda's document on the in-memory hypervisor, with its exact bodies and codes, as one table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.agent.remote import install
from tests.api.served import served
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.images.contract_samples import raw_disk
from twinshare.api.meda import vms as meda_vms
from twinshare.api.meda.words import WORDS
from twinshare.protocols.errors import RegistryFailed

SMALL = {"memory": "64M", "cpus": 1, "disk": "1G"}
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MAC = re.compile(r"52:54:00(:[0-9a-f]{2}){3}")


def info(state: str, **more: Any) -> dict[str, Any]:
    """A VmInfo of the VM that the table makes."""
    got = {"name": "test-vm", "state": state, "ip": str, "vcpus": "4", "memory": "2G", "disk": "20G"}
    return got | {"devices": [], "created": STAMP} | more


def done(message: str | re.Pattern[str], vm: Any = None) -> dict[str, Any]:
    return {"success": True, "message": message, "vm": vm}


def refused(code: str, reason: str) -> dict[str, Any]:
    return {"error": str, "code": code, "details": {"message": str, "reason": reason, ...: ...}}


@dataclass(frozen=True)
class Row:
    """One request and its answer: a type or a pattern stands for any value of it, `...` for whatever else is there."""

    verb: str
    path: str
    status: int
    body: Any
    sent: Any = None
    headers: dict[str, str] = field(default_factory=dict)


DETAILS = {"guest_ip": str, "subnet": str, "mac": MAC, "tap_device": "none", "memory": "2G", "disk_size": "20G",
           "vm_dir": "vms/test-vm"}  # fmt: skip
LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+")
NEW = {"name": "test-vm", "force": False, "memory": "2G", "cpus": 4, "disk": "20G"}
FORWARD = {"host_port": int, "guest_port": 80, "protocol": "tcp", "bind": "127.0.0.1", "active": True}
AMOUNT = {"mem_gb": int, "cpu": int, "disk_gb": int}
CAPACITY = dict.fromkeys(("total", "reserve", "committed", "in_flight", "available"), AMOUNT)
MISSING = refused("VM_NOT_FOUND", "vm_not_found")

TABLE = [
    Row("GET", "/health", 200, {"status": "healthy", "version": str, "timestamp": STAMP}),
    Row("GET", "/capacity", 200, CAPACITY),
    Row("GET", "/vms", 200, {"vms": [], "count": 0}),
    Row("POST", "/vms", 201, done("Successfully created VM: test-vm"), NEW),
    Row("GET", "/vms", 200, {"vms": [info("stopped", ip="N/A")], "count": 1}),
    Row("POST", "/vms", 409, refused("VM_CREATE_ERROR", "vm_exists"), NEW),
    Row("GET", "/vms/test-vm", 200, {"name": "test-vm", "state": "stopped", "ip": None, "details": DETAILS}),
    Row("GET", "/vms/test-vm/ip", 409, refused("VM_IP_ERROR", "wrong_state")),
    Row("POST", "/vms/test-vm/stop", 200, done("Successfully stopped VM: test-vm", info("stopped"))),
    Row("POST", "/vms/test-vm/start", 200, done("Successfully started VM: test-vm", info("running"))),
    Row("POST", "/vms/test-vm/start", 200, done("Successfully started VM: test-vm", info("running"))),
    Row("GET", "/vms/test-vm/ip", 200, {"vm": "test-vm", "ip": LOOPBACK}),
    Row("GET", "/vms", 200, {"vms": [info("running", ip=LOOPBACK)], "count": 1}),
    Row("GET", "/vms/test-vm", 200,
        {"name": "test-vm", "state": "running", "ip": LOOPBACK,
         "details": DETAILS | {"guest_ip": "10.0.2.15", "subnet": "10.0.2"}}),
    Row("POST", "/vms/test-vm/port-forward", 200,
        done(re.compile(r"Port forwarding set up: \d+ -> 80"), info("running")), {"host_port": 0, "guest_port": 80}),
    Row("GET", "/vms/test-vm/port-forward", 200, {"forwards": [FORWARD], "count": 1}),
    Row("DELETE", "/vms/test-vm/port-forward/{port}", 200,
        done(re.compile(r"Port forwarding removed: \d+"), info("running"))),
    Row("DELETE", "/vms/test-vm/port-forward/{port}", 404, refused("PORT_FORWARD_ERROR", "forward_not_found")),
    Row("GET", "/vms/test-vm/port-forward", 200, {"forwards": [], "count": 0}),
    Row("POST", "/vms/test-vm/stop", 200, done("Successfully stopped VM: test-vm", info("stopped")), {"force": True}),
    Row("POST", "/vms/test-vm/start", 200, done("Successfully started VM: test-vm", info("running"))),
    Row("GET", "/images", 200, {"images": [
        {"name": "disk", "tag": "latest", "registry": "local", "size": "1M", "created": STAMP}], "count": 1}),
    Row("DELETE", "/images/disk", 409, refused("IMAGE_REMOVE_ERROR", "image_in_use")),
    Row("POST", "/images/run", 201,
        done("Successfully created and started VM from image: disk:latest",
             info("running", name="api-vm", vcpus="2", memory="1G", disk="15G")),
        {"image": "disk:latest", "name": "api-vm", "no_start": False, "memory": "1G", "cpus": 2, "disk": "15G"}),
    Row("POST", "/images/run", 201,
        done("Successfully created VM from image: disk",
             info("stopped", name=re.compile("disk-[0-9a-f]{6}"), vcpus="1", memory="64M", disk="1G")),
        {"image": "disk", "no_start": True, "registry": None, "org": None, "user_data": None, **SMALL}),
    Row("DELETE", "/vms/{vm}", 200, done(re.compile("Successfully deleted VM: disk-[0-9a-f]{6}"))),
    Row("POST", "/images/run", 409, refused("IMAGE_RUN_ERROR", "vm_exists"), {"image": "disk", "name": "api-vm"}),
    Row("POST", "/images/run", 404, refused("IMAGE_RUN_ERROR", "image_not_found"), {"image": "no-such-image"}),
    Row("DELETE", "/images/no-such-image", 404, refused("IMAGE_REMOVE_ERROR", "image_not_found")),
    Row("POST", "/images", 201, done("Successfully created image: my-image:v1.0"),
        {"name": "my-image", "tag": "v1.0", "registry": "ghcr.io", "org": "myorg", "from_vm": "test-vm"}),
    Row("POST", "/images", 201, done("Successfully created image: my-image:latest"),
        {"name": "my-image", "from_vm": "test-vm"}),
    Row("POST", "/images", 409, refused("IMAGE_CREATE_ERROR", "image_exists"),
        {"name": "my-image", "from_vm": "test-vm"}),
    Row("POST", "/images", 400, refused("IMAGE_CREATE_ERROR", "invalid_request"), {"name": "my-image"}),
    Row("POST", "/images", 404, MISSING, {"name": "x", "from_vm": "nope"}),
    Row("GET", "/images", 200, {"images": [
        {"name": "disk", "tag": "latest", "registry": "local", "size": "1M", "created": STAMP},
        {"name": "myorg/my-image", "tag": "v1.0", "registry": "ghcr.io", "size": "20G", "created": STAMP},
        {"name": "my-image", "tag": "latest", "registry": "local", "size": "20G", "created": STAMP}], "count": 3}),
    Row("POST", "/images/prune", 200,
        done(re.compile(r"Successfully pruned images: 0 removed, 0K freed")), {"all": False, "force": True}),
    Row("POST", "/images/prune", 200, done(re.compile(r"Successfully pruned images: 1 removed, .*")), {"all": True}),
    Row("POST", "/images/pull", 200, done("Successfully pulled image: web:latest"),
        {"image": "web:latest", "registry": "registry.example", "org": "them"}),
    Row("POST", "/images/pull", 200, done("Successfully pulled image: registry.example/them/web"),
        {"image": "registry.example/them/web", "registry": None, "org": None}),
    Row("POST", "/images/pull", 404, refused("IMAGE_PULL_ERROR", "image_not_found"), {"image": "no-such-image"}),
    Row("POST", "/images/pull", 404, refused("IMAGE_PULL_ERROR", "image_not_found"),
        {"image": "none", "registry": "registry.example"}),
    Row("POST", "/images/push", 200,
        done("Nothing was sent; the registry would take image: my-registry.com/my-image:v1.0"),
        {"name": "disk", "image": "my-registry.com/my-image:v1.0", "dry_run": True}),
    Row("POST", "/images/push", 200, done("Successfully pushed image: my-registry.com/my-image:v1.0"),
        {"name": "disk", "image": "my-registry.com/my-image:v1.0", "registry": "my-registry.com", "dry_run": False}),
    Row("POST", "/images/push", 200, done("Successfully pushed image: other:v1"),
        {"name": "disk", "image": "other:v1", "registry": "my-registry.com"}),
    Row("POST", "/images/push", 400, refused("IMAGE_PUSH_ERROR", "invalid_request"), {"name": "disk", "image": "x"}),
    Row("POST", "/images/push", 404, refused("IMAGE_PUSH_ERROR", "image_not_found"),
        {"name": "nope", "image": "x", "registry": "my-registry.com"}),
    Row("POST", "/images/run", 201,
        done("Successfully created and started VM from image: fresh:v2",
             info("running", name=re.compile("fresh-[0-9a-f]{6}"), vcpus="2", memory="1G", disk="10G")),
        {"image": "fresh:v2", "registry": "registry.example", "org": "them"}),
    Row("DELETE", "/vms/{vm}", 200, done(re.compile("Successfully deleted VM: fresh-[0-9a-f]{6}"))),
    Row("DELETE", "/images/registry.example%2Fthem%2Ffresh%3Av2", 200,
        done("Successfully removed image: registry.example/them/fresh:v2")),
    Row("DELETE", "/images/registry.example%2Fthem%2Fweb", 200,
        done("Successfully removed image: registry.example/them/web")),
    Row("DELETE", "/vms/test-vm", 200, done("Successfully deleted VM: test-vm")),
    Row("DELETE", "/vms/api-vm", 200, done("Successfully deleted VM: api-vm")),
    Row("DELETE", "/images/disk%3Alatest", 200, done("Successfully removed image: disk:latest")),
    Row("GET", "/images", 200, {"images": [], "count": 0}),
    *(Row(verb, f"/vms/nope{rest}", 404, MISSING) for verb, rest in (
        ("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop"), ("GET", "/ip"),
        ("GET", "/port-forward"), ("DELETE", "/port-forward/80"))),
    Row("POST", "/vms/nope/port-forward", 404, MISSING, {"host_port": 8080, "guest_port": 80}),
    Row("GET", "/nope", 404, refused("NOT_FOUND", "not_found")),
    Row("PUT", "/vms", 405, refused("METHOD_NOT_ALLOWED", "method_not_allowed")),
]  # fmt: skip


def differences(got: Any, meant: Any, at: str = "body") -> Iterator[str]:
    if isinstance(meant, dict) and isinstance(got, dict):
        more = set() if ... in meant else got.keys() - meant.keys()
        for key in {*meant, *more} - {...}:
            if key not in got or key not in meant:
                yield f"{at}.{key}: {'not there' if key not in got else 'not documented'}"
            else:
                yield from differences(got[key], meant[key], f"{at}.{key}")
    elif isinstance(meant, list) and isinstance(got, list) and len(got) == len(meant):
        for number, pair in enumerate(zip(got, meant, strict=True)):
            yield from differences(*pair, f"{at}[{number}]")
    elif isinstance(meant, re.Pattern):
        if not isinstance(got, str) or not meant.fullmatch(got):
            yield f"{at}: {got!r}"
    elif not (isinstance(got, meant) if isinstance(meant, type) else got == meant):
        yield f"{at}: {got!r} and not {meant!r}"


async def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    remote = install(monkeypatch)
    remote.contents = {f"registry.example/them/{name}": raw_disk(5) for name in ("web:latest", "fresh:v2")}
    async with served(tmp_path) as api:
        port = vm = ""
        for number, row in enumerate(TABLE):
            path = f"/api/v1{row.path}".replace("{port}", port).replace("{vm}", vm)
            got = await api.client.request(row.verb, path, json=row.sent, headers=row.headers)
            where = f"{number}: {row.verb} {path}"
            if got.status_code != row.status or got.headers["content-type"] != "application/json":
                found.append(f"{where}: {got.status_code} {got.text}")
                continue
            found += [f"{where}: {fault}" for fault in differences(got.json(), row.body)]
            if "forwards" in got.json() and got.json()["forwards"]:
                port = str(got.json()["forwards"][0]["host_port"])
            vm = (got.json().get("vm") or {"name": vm})["name"] if row.verb == "POST" and row.status == 201 else vm
    assert not found, "\n".join(found)


async def test_the_table_has_every_route(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get("/api/v1/openapi.json")
    got = {(verb.upper(), path.removeprefix("/api/v1")) for path, verbs in document["paths"].items() for verb in verbs}
    tried = {(row.verb, _pattern(row.path)) for row in TABLE if row.status < 300}
    assert got - tried == set()


def _pattern(path: str) -> str:
    path = re.sub(r"^/vms/[^/]+", "/vms/{name}", path)
    if path not in {"/images/run", "/images/prune", "/images/pull", "/images/push"}:
        path = re.sub(r"^/images/[^/]+", "/images/{image}", path)
    return path.replace("{port}", "{host_port}")


async def test_no_room_is_503_with_a_word_for_what_is_missing(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for asked, word in (({"memory": "9999G"}, "MEM"), ({"cpus": 16}, "CPU"), ({"disk": "900T"}, "DISK")):
            limits = api.node.config.hypervisor
            api.node.vms.admission._limits = replace(limits, cpu_overcommit=0.001) if word == "CPU" else limits
            wanted = {"image": "disk", "name": "big", **SMALL, **asked}
            for path, body in (("/images/run", wanted), ("/vms", {**wanted, "image": ...})):
                body = {key: value for key, value in body.items() if value is not ...}
                got = await api.client.post(f"/api/v1{path}", json=body)
                assert (got.status_code, got.json()["code"]) == (503, f"{word}_EXHAUSTED"), got.text
                assert int(got.headers["retry-after"]) > 0
        assert (await api.get("/api/v1/vms"))["count"] == 0


async def test_force_replaces_a_vm_and_a_repeated_request_replaces_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        body = {"name": "test-vm", **SMALL}
        await api.client.post("/api/v1/vms", json=body)
        await api.client.post("/api/v1/vms/test-vm/start")
        first = (await api.get("/api/vm/test-vm"))["id"]
        forced, key = {**body, "force": True}, {"idempotency-key": "again"}
        refused = await api.client.post("/api/v1/vms", json={**forced, "memory": "9999G"})
        assert refused.json()["code"] == "MEM_EXHAUSTED"
        assert (await api.get("/api/vm/test-vm"))["id"] == first, "a refused request changes nothing"
        assert (await api.client.post("/api/v1/vms", json=forced, headers=key)).status_code == 201
        second = await api.get("/api/vm/test-vm")
        assert (second["id"] == first, second["status"]) == (False, "stopped")
        assert (await api.client.post("/api/v1/vms", json=forced, headers=key)).status_code == 201
        assert (await api.get("/api/vm/test-vm"))["id"] == second["id"]


async def test_a_change_can_be_watched_as_an_operation(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        headers = {"prefer": "respond-async", "idempotency-key": "k"}
        run = {"image": "disk", **SMALL}
        begun = await api.client.post("/api/v1/images/run", json=run, headers=headers)
        assert begun.status_code == 202
        ended = await api.get(f"{begun.headers['location']}/wait?timeout=5")
        again = await api.client.post("/api/v1/images/run", json=run, headers={"idempotency-key": "k"})
        assert (again.status_code, again.json()["vm"]["name"]) == (201, ended["result"]["name"])


async def test_a_guest_that_boots_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as api:
        hypervisor = api.node.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        await api.client.post("/api/v1/images/run", json={"image": "disk", "name": "slow", **SMALL})
        hypervisor.behaviour = dataclasses.replace(hypervisor.behaviour, boots_in=None)
        monkeypatch.setattr(meda_vms.MedaVms, "ip_timeout", 0.2)
        got = await api.client.get("/api/v1/vms/slow/ip")
        assert (got.status_code, got.json()["code"]) == (409, "VM_IP_ERROR")
        assert "booting" in got.json()["error"]


async def test_user_data_is_content_and_a_path_only_where_it_is_allowed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "good").write_text("#cloud-config\nhostname: named\n")
    (shared / "bad").write_text("root:x:0:0\n")
    (shared / "binary").write_bytes(b"#!\xff\xfe")
    (shared / "large").write_text("#!" + "x" * 65536)
    (shared / "link").symlink_to("/etc/passwd")
    (tmp_path / "beside").write_text("#!/bin/sh\n")
    run = {"image": "disk", "no_start": True, **SMALL}
    refused = (
        "/etc/passwd",
        "../beside",
        str(tmp_path / "beside"),
        "link",
        "bad",
        "binary",
        "large",
        ".",
        "nope",
        "\0",
    )
    async with served(tmp_path / "closed") as api:
        for text in (str(shared / "good"), *refused):
            got = await api.client.post("/api/v1/images/run", json={**run, "user_data": text})
            assert (got.status_code, got.json()["code"]) == (400, "IMAGE_RUN_ERROR")
            assert got.json()["details"]["path"] == "user_data"
            assert "api.allow_user_data_dir" in got.json()["error"]
        content = {**run, "user_data": "#!/bin/sh\ntrue\n"}
        assert (await api.client.post("/api/v1/images/run", json=content)).status_code == 201
    async with served(tmp_path / "open", allow_user_data_dir=str(shared)) as api:
        for text in ("good", str(shared / "good")):
            got = await api.client.post("/api/v1/images/run", json={**run, "user_data": text})
            assert got.status_code == 201, got.text
        for text in refused:
            got = await api.client.post("/api/v1/images/run", json={**run, "user_data": text})
            assert got.status_code == 400, text
            assert str(tmp_path) not in got.json()["error"]


def test_the_words_are_those_of_the_contract() -> None:
    assert {word for word in WORDS.values() if not re.fullmatch(r"(VM|IMAGE)_\w+_ERROR|PORT_FORWARD_ERROR", word)} == {
        "CAPACITY_PROBE_ERROR"
    }


async def test_what_a_registry_does_wrong_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = install(monkeypatch)
    remote.failure = RegistryFailed("registry.example answers 500 to everything")
    place = {"registry": "registry.example", "org": "them"}
    async with served(tmp_path) as api:
        for path, body, word in (
            ("/images/pull", {"image": "web", **place}, "IMAGE_PULL_ERROR"),
            ("/images/run", {"image": "web", "name": "web", **place}, "IMAGE_RUN_ERROR"),
        ):
            got = await api.client.post(f"/api/v1{path}", json=body)
            assert (got.status_code, got.json()["code"]) == (502, word)
        assert (await api.get("/api/v1/vms"))["count"] == 0


async def test_force_deletes_nothing_before_the_image_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = install(monkeypatch)
    async with served(tmp_path) as api:
        body = {"name": "test-vm", **SMALL}
        await api.client.post("/api/v1/vms", json=body)
        images = replace(api.node.config.images, default="a.example/new:v1")
        api.node.config = replace(api.node.config, images=images)
        remote.failure = RegistryFailed("it stalls")
        assert (await api.client.post("/api/v1/vms", json={**body, "force": True})).status_code == 502
        assert (await api.get("/api/vm/test-vm"))["image"] == "disk"
        remote.failure, remote.contents["a.example/new:v1"] = None, raw_disk(6)
        assert (await api.client.post("/api/v1/vms", json={**body, "force": True})).status_code == 201
        assert (await api.get("/api/vm/test-vm"))["image"] == "a.example/new:v1"
