"""Real QEMU through REST: the guide's routes and words, many VMs at once, and nothing left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.vm import CloudInit, ForwardSpec, VmStatus

pytestmark = pytest.mark.system
TOP = Path(__file__).parents[2]

# The guide's examples, as it writes them; only the image and the port are this test's.
GUIDE = r"""
curl -X GET http://localhost:8080/api/vm
---
curl -X POST http://localhost:8080/api/vm \
  -H "Content-Type: application/json" \
  -d '{
    "name": "new-vm",
    "image": "tiny",
    "cpu_cores": 2,
    "memory": 2048,
    "disk_size": 20
  }'
---
curl -X POST http://localhost:8080/api/vm/new-vm/start
---
curl -X POST http://localhost:8080/api/vm/new-vm/stop \
  -H "Content-Type: application/json" \
  -d '{
    "force": true
  }'
---
curl -X DELETE http://localhost:8080/api/vm/new-vm
"""


def test_the_guides_curl_examples(node: AgentProcess) -> None:
    port = node.url.rpartition(":")[2]
    answers: list[Any] = []
    for command in GUIDE.replace("localhost:8080", f"localhost:{port}").split("---\n"):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        answers.append(json.loads(done.stdout))
    listed, made, started, stopped, deleted = answers
    assert listed == {"vms": []}
    documented = {"name": "new-vm", "cpu_cores": 2, "memory": 2048, "disk_size": 20, "network": "default"}
    assert {key: made[key] for key in documented} == documented
    assert (made["status"], made["vnc_port"]) == ("stopped", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made["created_at"])
    assert isinstance(started["vnc_port"], int)
    for answer, status in ((started, "running"), (stopped, "stopped"), (deleted, None)):
        assert (answer["success"], answer["name"], answer.get("status")) == (True, "new-vm", status)


def test_the_example_program(node: AgentProcess) -> None:
    environment = {**os.environ, "TWINSHARE_API": node.url, "PYTHONPATH": str(TOP)}
    done = subprocess.run(
        [sys.executable, "examples/rest_api_usage.py"],
        cwd=TOP, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_guest_boots_answers_and_powers_off_by_itself(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        vms = client.vms()
        vm = await client.create_vm("web", "tiny", memory=128, disk_size=1, cpu_cores=1, start=True)
        forward = await vms.add_forward("web", ForwardSpec(host_port=0, guest_port=80))
        async with httpx.AsyncClient() as http:
            with trio.fail_after(60):
                while (answer := await _get(http, forward.host_port)) is None:
                    await trio.sleep(0.2)
        assert answer == "web\n"
        with trio.fail_after(60):
            while (found := await vms.vm_ip("web")).guest_ip is None:
                await trio.sleep(0.2)
        assert (found.guest_ip, found.source) == ("10.0.2.15", "agent")
        assert found.ip is not None
        assert found.ip.startswith("127.")
        assert (await vms.vm_screenshot("web")).data.startswith(b"\x89PNG")
        stats = await vms.vm_stats("web")
        assert stats.cpu_time > 0
        port = (await client.get_vm_status("web")).vnc_port
        assert port is not None
        with trio.fail_after(60):
            async with await trio.open_tcp_stream("127.0.0.1", port) as screen:
                assert (await screen.receive_some(12)).startswith(b"RFB 003.")
        stopped = await client.stop_vm("web")
        assert stopped.status is VmStatus.STOPPED
        assert "ready" in (await vms.vm_log("web")).text
        await client.delete_vm("web")
        assert vm.id not in {found.id for found in await client.list_vms()}


async def _get(http: httpx.AsyncClient, port: int) -> str | None:
    try:
        return (await http.get(f"http://127.0.0.1:{port}/", timeout=3)).text
    except httpx.HTTPError:
        return None


PROBE = """#!/bin/sh
exec >/dev/console 2>&1
for target in 10.0.2.2:{api} 10.0.2.2:{other} 127.0.0.1:{api}; do
    if wget -q -T 3 -O - http://$target/api/health; then word=reached; else word=refused; fi
    echo "probe: $target $word"
done
echo "probe: end"
"""


async def test_a_guest_reaches_neither_the_agent_nor_another_service_of_the_host(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client, trio.open_nursery() as nursery:
        reached: list[str] = []

        async def serve(stream: trio.SocketStream) -> None:
            async with stream:
                reached.append("yes")
                await stream.receive_some(1000)
                await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nsecret")

        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        other = listeners[0].socket.getsockname()[1]
        script = PROBE.format(api=node.url.rpartition(":")[2], other=other)
        await client.create_vm(
            "probe", "tiny", memory=128, disk_size=1, cpu_cores=1, start=True, cloud_init=CloudInit(user_data=script)
        )
        text = ""
        with trio.fail_after(90):
            while "probe: end" not in text:
                await trio.sleep(0.2)
                text = (await client.vms().vm_log("probe")).text
        assert text.count("refused") == 3, text
        assert "reached" not in text
        assert reached == []
        await client.delete_vm("probe", force=True)
        nursery.cancel_scope.cancel()


async def lives(client: RESTClient, name: str) -> None:
    await client.create_vm(name, "tick", memory=64, disk_size=1, cpu_cores=1)
    await client.start_vm(name)
    await client.stop_vm(name, force=True)
    await client.delete_vm(name)


def held(node: AgentProcess) -> Counter[str]:
    """The agent's open files by kind."""
    return Counter(_target(path).partition(":[")[0] for path in Path(f"/proc/{node.pid}/fd").iterdir())


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


def guests(node: AgentProcess) -> int:
    """How many QEMU processes this node's libvirt runs."""
    return len(list((node.data_dir / "hypervisor/r/libvirt/qemu/run").glob("*.xml")))


async def at_once(client: RESTClient, count: int, name: str) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(lives, client, f"{name}-{number}")


async def test_many_at_once_and_many_after_another_leave_nothing(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        # The adapter keeps a few idle connections to libvirt: as many as it ever keeps, once a crowd was there.
        await at_once(client, 16, "warm")
        before = held(node)
        with trio.fail_after(180):
            await at_once(client, 32, "many")
        with trio.fail_after(120):
            for number in range(30):
                await lives(client, f"one-{number}")
        assert await client.list_vms() == []
        assert list((node.data_dir / "vms").iterdir()) == []
        assert guests(node) == 0
        operations = [found for found in await client.operations().list_operations() if found.kind.endswith("_vm")]
        assert [found for found in operations if found.error and found.target.startswith(("many", "one", "warm"))] == []
    async with RESTClient(node.url) as client:
        await client.list_vms()
        with trio.fail_after(60):
            while held(node) - before - Counter({"socket": 2}):
                await trio.sleep(0.2)


async def test_a_hung_guest_hangs_nobody_else(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        await client.create_vm("hung", "tick", memory=64, disk_size=1, cpu_cores=1, start=True)
        assert guests(node) == 1
        pid = int((node.data_dir / "hypervisor/r/libvirt/qemu/run/hung.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_ignore, client, "hung")
                    for _ in range(20):
                        with trio.fail_after(2):
                            assert [vm.name for vm in await client.list_vms()] == ["hung"]
                            assert (await client.get_vm_status("hung")).name == "hung"
                    await lives(client, "other")
                    nursery.cancel_scope.cancel()
            with trio.fail_after(40):
                await client.stop_vm("hung", force=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await client.delete_vm("hung")


async def _ignore(client: RESTClient, name: str) -> None:
    await client.vms().vm_stats(name)
