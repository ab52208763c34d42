"""Two nodes behind two routers, and a third in the open: a VM is made through the relay, and looked at directly."""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.p2p.routers import two_routers
from twinshare.agent.testing import AgentProcess

pytestmark = pytest.mark.system


class Node:
    """A node in a network namespace; REST is asked from inside."""

    def __init__(
        self,
        where: tuple[str, ...],
        folder: Path,
        *,
        listen: str | None = "/ip4/0.0.0.0/tcp/4001",
        api: str = "127.0.0.1:8080",
    ) -> None:
        self.where, self.url = where, f"http://{api}"
        environment = {
            "TWINSHARE_P2P_ENABLED": "true",
            "TWINSHARE_P2P_DEAD_PEER_TIMEOUT": "5",
            "TWINSHARE_LOG_LEVEL": "debug",
            "TWINSHARE_P2P_MDNS": "false",
        }
        options = ["--api", api, "--hypervisor", "fake://", *(["--listen", listen] if listen else [])]
        program = [*where, sys.executable, "-m", "twinshare", "agent"]
        self.agent = AgentProcess(folder, [*options, "--name", folder.name], environment, program)

    async def ask(self, verb: str, path: str, body: Any = None) -> Any:
        command = ["curl", "-sS", "--globoff", "--max-time", "30", "-X", verb, f"{self.url}{path}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        return await self._curl(*command)

    async def upload(self, name: str, file: Path) -> None:
        command = ["-H", "Content-Type: application/octet-stream", "--data-binary", f"@{file}"]
        answer = await self._curl("curl", "-sS", "--globoff", *command, f"{self.url}/api/image/import?name={name}")
        assert "error" not in answer, answer

    async def fetch(self, url: str) -> bytes:
        """What a URL answers inside the namespace."""
        command = [*self.where, "curl", "-sS", "--globoff", "--max-time", "20", url]
        return bytes((await trio.run_process(command, capture_stdout=True)).stdout)

    async def _curl(self, *command: str) -> Any:
        done = await trio.run_process([*self.where, *command], capture_stdout=True)
        return json.loads(done.stdout)

    async def path_to(self, peer: str) -> str | None:
        answer = await self.ask("POST", f"/api/p2p/peers/{peer}/ping")
        path: str | None = answer.get("path")
        return path


async def until_path(node: Node, peer: str, path: str, seconds: float) -> None:
    with trio.fail_after(seconds):
        while await node.path_to(peer) != path:
            await trio.sleep(0.2)


async def test_a_vm_behind_two_routers_through_the_relay_and_then_directly(tmp_path: Path) -> None:
    with two_routers() as routers:
        async with AsyncExitStack() as stack:
            nodes = {}
            for name, where in (
                ("open", routers.in_the_open), ("one", routers.behind_one), ("two", routers.behind_two),
            ):  # fmt: skip
                nodes[name] = node = Node(where, tmp_path / name)
                await node.agent.start()
                stack.push_async_callback(node.agent.stop)
            one, two = nodes["one"], nodes["two"]
            with routers.blocked():
                for node in (one, two):
                    ticket = await nodes["open"].ask("POST", "/api/p2p/invite", {"role": "admin"})
                    await node.ask("POST", "/api/p2p/join", {"ticket": ticket["ticket"]})
                await until_path(one, "two", "relayed", 30)
                disk = tmp_path / "disk"
                disk.write_bytes(bytes(1 << 20))
                await two.upload("blank", disk)
                spec = {"name": "far", "image": "blank", "memory": 128, "disk_size": 1, "cpu_cores": 1}
                made = await one.ask("POST", "/api/remote/two/vm", spec)
                assert made["name"] == "far", made
                assert await one.path_to("two") == "relayed"
            await until_path(one, "two", "direct", 60)
            await until_path(two, "one", "direct", 10)
            await nodes["open"].agent.kill()
            listed = await one.ask("GET", "/api/remote/two/vm")
            assert [vm["name"] for vm in listed["vms"]] == ["far"], listed
