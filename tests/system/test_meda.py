"""Meda's document on real QEMU: its curl examples as they are written, with the tiny guest."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

import httpx
import pytest
import trio

from twinshare.agent.testing import AgentProcess

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
# Its "Image Workflow"; the image and the VM that is stopped before it is captured are this test's.
RUN = r"""
curl -X POST http://localhost:7777/api/v1/images/run \
  -H "Content-Type: application/json" \
  -d '{
    "image": "tiny:latest",
    "name": "ubuntu-vm",
    "memory": "1G",
    "cpus": 2
  }'
"""
CAPTURE = r"""
curl -X POST http://localhost:7777/api/v1/images \
  -H "Content-Type: application/json" \
  -d '{
    "name": "my-ubuntu",
    "tag": "v1.0",
    "from_vm": "ubuntu-vm"
  }'
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


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
        assert detail["details"]["subnet"] == address["ip"].rpartition(".")[0]
        gone = await http.delete("/vms/api-test")
        assert (gone.status_code, gone.json()["success"]) == (200, True)
        assert (await http.get("/vms/api-test")).json()["code"] == "VM_NOT_FOUND"


async def test_an_image_is_run_made_and_run_again(node: AgentProcess) -> None:
    async with httpx.AsyncClient(base_url=f"{node.url}/api/v1", timeout=120, trust_env=False) as http:
        [ran] = await trio.to_thread.run_sync(curl, node, RUN)
        assert (ran["success"], ran["vm"]["name"], ran["vm"]["state"]) == (True, "ubuntu-vm", "running")
        assert (await http.get("/vms/ubuntu-vm/ip")).status_code == 200
        assert (await http.post("/images", json={"name": "x", "from_vm": "ubuntu-vm"})).status_code == 409
        stopped = await http.post("/vms/ubuntu-vm/stop")
        assert stopped.json()["vm"]["state"] == "stopped", stopped.text
        [made] = await trio.to_thread.run_sync(curl, node, CAPTURE)
        assert made == {"success": True, "message": "Successfully created image: my-ubuntu:v1.0", "vm": None}
        again = {"image": "my-ubuntu:v1.0", "name": "again", "memory": "128M", "cpus": 1}
        assert (await http.post("/images/run", json=again)).status_code == 201
        assert (await http.get("/vms/again/ip")).status_code == 200
        refused = await http.delete("/images/my-ubuntu:v1.0")
        assert (refused.status_code, refused.json()["details"]["vms"]) == (409, ["again"])
        for name in ("again", "ubuntu-vm"):
            assert (await http.delete(f"/vms/{name}")).status_code == 200
        assert (await http.delete("/images/my-ubuntu:v1.0")).status_code == 200
