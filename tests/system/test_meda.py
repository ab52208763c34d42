"""Meda's document on real QEMU: its curl examples as they are written, with the tiny guest."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.guest.disks import tiny_disk
from tests.images.registry.servers import docker_registry, needs_registry
from tests.ports import free_port
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient

pytestmark = pytest.mark.system

# The document's "Create and Start VM via API"; only the two ports are this test's.
CREATE_AND_START = r"""
curl -X POST http://localhost:7777/api/v1/vms \
  -H "Content-Type: application/json" \
  -d '{
    "name": "api-test",
    "memory": "2G",
    "cpus": 4,
    "disk": "20G"
  }'
---
curl -X POST http://localhost:7777/api/v1/vms/api-test/start
---
curl http://localhost:7777/api/v1/vms/api-test/ip
---
curl -X POST http://localhost:7777/api/v1/vms/api-test/port-forward \
  -H "Content-Type: application/json" \
  -d '{"host_port": 8080, "guest_port": 80}'
"""
# Its "Image Workflow", as written: the node's default registry is this test's.
WORKFLOW = r"""
curl -X POST http://localhost:7777/api/v1/images/pull \
  -H "Content-Type: application/json" \
  -d '{"image": "ubuntu:latest"}'
---
curl -X POST http://localhost:7777/api/v1/images/run \
  -H "Content-Type: application/json" \
  -d '{
    "image": "ubuntu:latest",
    "name": "ubuntu-vm",
    "memory": "1G",
    "cpus": 2
  }'
---
curl -X POST http://localhost:7777/api/v1/images \
  -H "Content-Type: application/json" \
  -d '{
    "name": "my-ubuntu",
    "tag": "v1.0",
    "from_vm": "ubuntu-vm"
  }'
"""


def curl(node: AgentProcess, commands: str, host_port: int = 0) -> list[Any]:
    port = node.url.rpartition(":")[2]
    commands = commands.replace("localhost:7777", f"localhost:{port}").replace("8080", str(host_port))
    answers = []
    for command in commands.split("---\n"):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=90, check=True)
        answers.append(json.loads(done.stdout))
    return answers


async def answers_http(port: int) -> str:
    """What the guest says on its forwarded port, once it listens."""
    async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
        with trio.fail_after(60):
            while True:
                try:
                    return (await http.get(f"http://127.0.0.1:{port}/")).text
                except httpx.TransportError:
                    await trio.sleep(0.2)


async def test_create_and_start_as_written(node: AgentProcess) -> None:
    port = free_port()
    made, started, address, forwarded = await trio.to_thread.run_sync(curl, node, CREATE_AND_START, port)
    assert made == {"success": True, "message": "Successfully created VM: api-test", "vm": None}
    assert (started["success"], started["vm"]["memory"], started["vm"]["vcpus"]) == (True, "2G", "4")
    assert address["vm"] == "api-test"
    assert socket.inet_aton(address["ip"])
    assert forwarded["message"] == f"Port forwarding set up: {port} -> 80"
    assert "api-test" in await answers_http(port)
    async with httpx.AsyncClient(base_url=f"{node.url}/api/v1", timeout=60, trust_env=False) as http:
        detail = (await http.get("/vms/api-test")).json()
        assert (detail["state"], detail["ip"]) == ("running", address["ip"])
        assert detail["details"]["guest_ip"] in {"10.0.2.15", "none"}, "none before the guest has said so"
        assert detail["details"]["subnet"] == (detail["details"]["guest_ip"].rpartition(".")[0] or "none")
        gone = await http.delete("/vms/api-test")
        assert (gone.status_code, gone.json()["success"]) == (200, True)
        assert (await http.get("/vms/api-test")).json()["code"] == "VM_NOT_FOUND"


def can_listen_on_22() -> bool:
    """Whether VMs' addresses can have port 22: it takes the privilege, and no sshd on all addresses."""
    with socket.socket() as tried:
        try:
            tried.bind(("127.128.0.1", 22))
        except OSError:
            return False
    return True


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client")
@pytest.mark.skipif(not can_listen_on_22(), reason="port 22 of the loopback is taken, or kept for root")
async def test_a_client_that_asks_for_the_address_and_logs_in(node: AgentProcess, tmp_path: Path) -> None:
    """The way of the runners that are known to use it: create, start, ask for `ip` until it is there, ssh to that."""
    await trio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")])
    user_data = f"#cloud-config\nssh_authorized_keys:\n  - {(tmp_path / 'key.pub').read_text()}"
    vm = {"name": "runner", "memory": "128M", "cpus": 1, "disk": "1G", "user_data": user_data}
    async with httpx.AsyncClient(base_url=f"{node.url}/api/v1", timeout=60, trust_env=False) as http:
        assert (await http.post("/vms", json=vm)).status_code == 201
        try:
            assert (await http.post("/vms/runner/start")).status_code == 200
            with trio.fail_after(90):
                while (found := await http.get("/vms/runner/ip")).status_code != 200:
                    await trio.sleep(0.2)
                assert await logs_in(found.json()["ip"], tmp_path / "key") == "runner\n"
        finally:
            assert (await http.delete("/vms/runner")).status_code == 200


async def logs_in(ip: str, key: Path) -> str:
    """Run `hostname` by ssh, as often as the guest refuses while it boots."""
    options = ["-i", str(key), "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-p", "22"]
    while True:
        command = ["ssh", *options, f"root@{ip}", "hostname"]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
        if done.returncode == 0:
            return done.stdout.decode()
        await trio.sleep(0.3)


@asynccontextmanager
async def node_with_registry(folder: Path) -> AsyncIterator[tuple[AgentProcess, str]]:
    """A node whose names without a place are `cirunlabs`' at an empty registry of this machine."""
    async with docker_registry(folder / "registry") as registry:
        config = folder / "twinshare.toml"
        config.write_text(
            f'[images]\ndefault_registry = "{registry.host}/cirunlabs"\n'
            f'[[images.registries]]\nhost = "{registry.host}"\ninsecure = true\n'
        )
        async with open_agent(folder / "node", "--config", str(config)) as agent:
            yield agent, registry.host


@needs_registry
async def test_the_image_workflow_as_written(tmp_path: Path) -> None:
    async with (
        node_with_registry(tmp_path) as (agent, host),
        httpx.AsyncClient(base_url=f"{agent.url}/api/v1", timeout=120, trust_env=False) as http,
    ):
        async with RESTClient(agent.url) as client:
            await client.import_image("base", await tiny_disk())
        sent = {"name": "base", "image": "cirunlabs/ubuntu:latest", "registry": host}
        assert (await http.post("/images/push", json=sent)).json()["success"]
        assert (await http.delete("/images/base")).status_code == 200

        pulled, ran, made = await trio.to_thread.run_sync(curl, agent, WORKFLOW)
        assert pulled["message"] == "Successfully pulled image: ubuntu:latest"
        assert (ran["vm"]["name"], ran["vm"]["state"]) == ("ubuntu-vm", "running")
        assert made == {"success": True, "message": "Successfully created image: my-ubuntu:v1.0", "vm": None}
        # The VM went on while its image was made, nothing of that is left, and the image boots.
        assert not list((tmp_path / "node" / "vms").glob("*/view*"))
        assert (await http.get("/vms/ubuntu-vm")).json()["state"] == "running"
        assert (await http.get("/vms/ubuntu-vm/ip")).status_code == 200
        again = {"image": "my-ubuntu:v1.0", "name": "again", "memory": "128M", "cpus": 1}
        assert (await http.post("/images/run", json=again)).status_code == 201
        assert (await http.get("/vms/again/ip")).status_code == 200
        refused = await http.delete("/images/my-ubuntu:v1.0")
        assert (refused.status_code, refused.json()["details"]["vms"]) == (409, ["again"])
        pruned = await http.post("/images/prune", json={"all": True, "force": True})
        assert "0 removed" in pruned.json()["message"], "both images have VMs"
        back = {"name": "my-ubuntu:v1.0", "image": f"{host}/myorg/my-ubuntu:v1.0", "dry_run": False}
        assert (await http.post("/images/push", json=back)).json()["success"]
        for name in ("again", "ubuntu-vm"):
            assert (await http.delete(f"/vms/{name}")).status_code == 200
        assert not [file.name for file in (tmp_path / "node" / "vms").rglob("*")]
        # What is not here is fetched as part of the run.
        assert (await http.post("/images/prune", json={"all": True})).status_code == 200
        fresh = {"image": "my-ubuntu:v1.0", "registry": host, "org": "myorg", "memory": "128M", "no_start": True}
        assert (await http.post("/images/run", json=fresh)).status_code == 201
        assert (await http.get("/images")).json()["images"][0]["name"] == "myorg/my-ubuntu"
        assert (await http.delete(f"/vms/{(await http.get('/vms')).json()['vms'][0]['name']}")).status_code == 200
