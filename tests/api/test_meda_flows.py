"""The flows of Meda's document, run by curl as they are written there, and what a bare name of an image means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.remote import install
from tests.api.served import Served, served
from twinshare.agent.images.contract_samples import raw_disk

CREATE_AND_START = """
curl -X POST http://localhost:7777/api/v1/vms -H "Content-Type: application/json" \
  -d '{"name": "api-test", "memory": "2G", "cpus": 4, "disk": "20G"}'
curl -X POST http://localhost:7777/api/v1/vms/api-test/start
curl http://localhost:7777/api/v1/vms/api-test/ip
curl -X POST http://localhost:7777/api/v1/vms/api-test/port-forward -H "Content-Type: application/json" \
  -d '{"host_port": 0, "guest_port": 80}'
"""
IMAGE_WORKFLOW = """
curl -X POST http://localhost:7777/api/v1/images/pull -H "Content-Type: application/json" \
  -d '{"image": "ubuntu:latest", "registry": "ghcr.io", "org": "cirunlabs"}'
curl -X POST http://localhost:7777/api/v1/images/run -H "Content-Type: application/json" \
  -d '{"image": "ubuntu:latest", "name": "ubuntu-vm", "memory": "1G", "cpus": 2}'
curl -X POST http://localhost:7777/api/v1/images -H "Content-Type: application/json" \
  -d '{"name": "my-image", "tag": "v1.0", "registry": "ghcr.io", "org": "myorg", "from_vm": "ubuntu-vm"}'
curl -X POST http://localhost:7777/api/v1/images/push -H "Content-Type: application/json" \
  -d '{"name": "my-image", "image": "my-registry/my-image:v1.0", "registry": "my-registry.com", "dry_run": false}'
curl -X POST http://localhost:7777/api/v1/images/run -H "Content-Type: application/json" \
  -d '{"image": "my-image", "name": "api-vm", "no_start": false, "memory": "1G", "cpus": 2, "disk": "20G"}'
curl -X DELETE http://localhost:7777/api/v1/vms/api-vm
curl -X DELETE http://localhost:7777/api/v1/images/my-image
"""
SMALL = {"memory": "64M", "cpus": 1, "disk": "1G"}


async def run_as_written(api: Served, commands: str) -> list[Any]:
    """The answers of the commands, against `api` in the place of the document's server."""
    answers = []
    for command in re.findall(r"curl .*", commands.replace("\\\n", " ")):
        here = command.replace("http://localhost:7777", api.url).replace("curl ", "curl -sS --fail-with-body ", 1)
        done = await trio.run_process(["sh", "-c", here], capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout.decode()} {done.stderr.decode()}"
        answers.append(json.loads(done.stdout))
    return answers


async def test_a_vm_is_created_and_started_as_the_document_does_it(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        answers = await run_as_written(api, CREATE_AND_START)
        assert answers[2]["vm"] == "api-test"
        assert (await api.get("/api/v1/vms"))["vms"][0]["devices"] == []


async def test_an_image_is_made_pushed_run_and_deleted_by_its_bare_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = install(monkeypatch)
    remote.contents["ghcr.io/cirunlabs/ubuntu:latest"] = raw_disk(3)
    async with served(tmp_path) as api:
        # The registry of this test keeps a whole disk in memory: a small one in place of 10 GiB.
        monkeypatch.setattr(api.node.images.store, "contents_of", lambda digest: raw_disk(4))
        await run_as_written(api, IMAGE_WORKFLOW)
        assert "my-registry.com/my-registry/my-image:v1.0" in remote.contents
        left = [f"{one['registry']}/{one['name']}" for one in (await api.get("/api/v1/images"))["images"]]
        assert "ghcr.io/myorg/my-image" not in left
        assert (await api.get("/api/vm/ubuntu-vm"))["image"] == "ghcr.io/cirunlabs/ubuntu:latest"


async def make(api: Served, name: str, tag: str, **place: str) -> None:
    body = {"name": name, "tag": tag, "from_vm": "one", **place}
    made = await api.client.post("/api/v1/images", json=body)
    assert made.status_code == 201, made.text


async def test_which_image_a_bare_name_means(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.client.post("/api/v1/images/run", json={"image": "disk", "name": "one", "no_start": True, **SMALL})

        async def meant(name: str) -> str:
            run = {"image": name, "no_start": True, **SMALL}
            made = await api.client.post("/api/v1/images/run", json=run)
            if made.status_code != 201:
                return str(made.json()["details"]["reason"])
            return str((await api.get(f"/api/vm/{made.json()['vm']['name']}"))["image"])

        await make(api, "web", "v1", registry="a.example", org="us")
        assert await meant("web") == "a.example/us/web:v1", "the one whose last part it is"
        assert await meant("web:v2") == "image_not_found", "a tag that is given is the one that is meant"
        await make(api, "web", "v2", registry="b.example", org="us")
        assert await meant("web:v2") == "b.example/us/web:v2"
        assert await meant("web") == "ambiguous_name", "two, and none has the tag latest"
        await make(api, "web", "latest", registry="c.example", org="us")
        assert await meant("web") == "c.example/us/web:latest", "of several the one with the tag"
        await make(api, "web", "v9")
        assert await meant("web") == "web:v9", "exactly that name goes before all"
        assert await meant("us/web") == "image_not_found", "only a bare name is completed"


async def test_an_ambiguous_name_is_refused_with_the_images(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.client.post("/api/v1/images/run", json={"image": "disk", "name": "one", "no_start": True, **SMALL})
        for registry in ("a.example", "b.example"):
            await make(api, "web", "v1", registry=registry)
        refused = await api.client.delete("/api/v1/images/web")
        assert (refused.status_code, refused.json()["code"]) == (409, "IMAGE_REMOVE_ERROR")
        assert refused.json()["details"]["candidates"] == ["a.example/web:v1", "b.example/web:v1"]


async def test_a_repeated_deletion_means_the_image_that_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.client.post("/api/v1/images/run", json={"image": "disk", "name": "one", "no_start": True, **SMALL})
        await make(api, "web", "v1", registry="a.example")
        await make(api, "web", "v1", registry="b.example", org="us")
        for _ in range(2):
            done = await api.client.delete("/api/v1/images/us%2Fweb", headers={"idempotency-key": "other"})
            assert done.status_code == 404
        await api.client.delete("/api/v1/images/a.example%2Fweb:v1")
        for _ in range(2):
            done = await api.client.delete("/api/v1/images/web", headers={"idempotency-key": "k"})
            assert done.status_code == 200, done.text


@pytest.mark.parametrize("body", [b"{}", b"null", b" { } ", b""])
async def test_an_empty_body_is_no_body(tmp_path: Path, body: bytes) -> None:
    json_body = {"content-type": "application/json"}
    async with served(tmp_path) as api:
        await api.client.post("/api/v1/images/run", json={"image": "disk", "name": "one", "no_start": True, **SMALL})
        for verb, path in (
            ("POST", "/api/v1/vms/one/start"),
            ("POST", "/api/v1/vms/one/stop"),
            ("POST", "/api/vm/one/start"),
            ("POST", "/api/vm/one/stop"),
            ("POST", "/api/v1/images/prune"),
            ("DELETE", "/api/v1/vms/one"),
        ):
            got = await api.client.request(verb, path, content=body, headers=json_body)
            assert got.status_code == 200, f"{verb} {path}: {got.text}"
        missing = await api.client.post("/api/v1/images/pull", content=body, headers=json_body)
        assert missing.status_code == 400, "what is required is still required"
        said = await api.client.post("/api/vm/one/start", content=b'{"x": 1}', headers=json_body)
        assert said.status_code == 400


async def test_the_page_of_the_document_is_there_with_and_without_a_slash(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        pages = [await api.client.get(path) for path in ("/swagger-ui", "/swagger-ui/")]
        assert [page.status_code for page in pages] == [200, 200]
        assert pages[0].content == pages[1].content
