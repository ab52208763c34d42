"""The last released version and this one: on one data directory in turn, and in one fleet."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.golden.released import released, unpack_release
from tests.golden.unpack import unpack
from twinshare.agent.images.contract_samples import raw_disk
from twinshare.agent.testing import AgentProcess

RELEASED = released()
PRESENT = [sys.executable, "-m", "twinshare", "agent"]
SMALL = {"image": "disk", "cpu_cores": 1, "memory": 64, "disk_size": 1}
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(RELEASED is None, reason="the released version is not in this clone: its history is shallow"),
]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    assert RELEASED is not None
    return unpack_release(RELEASED, tmp_path_factory.mktemp("released") / "tree")


class Agent(AgentProcess):
    """An agent of one of both versions, with peers."""

    def __init__(self, program: Sequence[str], data: Path, *options: str) -> None:
        config = data / "twinshare.toml"
        given = ["--config", str(config)] if config.exists() else []
        own = ["--api", "127.0.0.1:0", "--name", data.name, "--listen", "/ip4/127.0.0.1/tcp/0", *given, *options]
        environment = {"TWINSHARE_P2P_ENABLED": "true", "TWINSHARE_P2P_MDNS": "false"}
        super().__init__(data, own, environment, program=program)

    async def ask(self, verb: str, path: str, body: Any = None, *, status: int = 200, key: str = "") -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            answer = await http.request(verb, path, json=body, headers=headers)
        assert answer.status_code == status, (verb, path, answer.text, self.said[-3000:])
        return answer.json()

    async def upload(self) -> None:
        kind = {"Content-Type": "application/octet-stream"}
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            sent = await http.post("/api/image/import?name=disk", content=raw_disk(1), headers=kind)
        assert sent.status_code == 200, sent.text


@asynccontextmanager
async def running(program: Sequence[str], data: Path, *options: str) -> AsyncIterator[Agent]:
    agent = Agent(program, data, *options)
    await agent.start()
    try:
        yield agent
    finally:
        with trio.CancelScope(shield=True):
            await agent.stop()


async def settled(agent: Agent) -> list[Any]:
    """All operations, when none is under way any more."""
    with trio.fail_after(30):
        while True:
            found = (await agent.ask("GET", "/api/operations"))["operations"]
            if all(each["state"] not in {"pending", "running"} for each in found):
                return list(found)
            await trio.sleep(0.05)


async def names(agent: Agent, path: str = "/api/vm") -> set[str]:
    return {vm["name"] for vm in (await agent.ask("GET", path))["vms"]}


async def test_both_work_on_one_directory_in_turn(old: list[str], tmp_path: Path) -> None:
    """Forward, back, and forward again: neither loses what the other wrote, nor an operation that it left.

    The first version compares how requests are spelt: it refuses a repeated one, and makes no second VM.
    """
    data = unpack(tmp_path / "node")
    async with running(PRESENT, data) as agent:
        first = await settled(agent)
        await agent.ask("POST", "/api/vm", SMALL | {"name": "by-new", "start": True}, key="new-1")
        await agent.ask("POST", "/api/vm/by-new/port-forward", {"host_port": 0, "guest_port": 80})
        await agent.ask("POST", "/api/tokens", {"name": "by-new", "role": "viewer"})
        before = await names(agent)
    async with running(old, data) as agent:
        second = await settled(agent)
        assert {each["id"] for each in first} <= {each["id"] for each in second}
        assert await names(agent) == before
        await agent.ask("POST", "/api/vm", SMALL | {"name": "by-new", "start": True}, key="new-1", status=409)
        await agent.ask("POST", "/api/vm", SMALL | {"name": "by-old"}, key="old-1")
        assert len((await agent.ask("GET", "/api/vm/by-new/port-forward"))["forwards"]) == 1
        assert len((await agent.ask("GET", "/api/tokens"))["tokens"]) == 2
        await agent.ask("DELETE", "/api/vm/by-new", {"force": True})
    async with running(PRESENT, data) as agent:
        third = await settled(agent)
        assert {each["id"] for each in second} <= {each["id"] for each in third}
        assert await names(agent) == before - {"by-new"} | {"by-old"}
        await agent.ask("POST", "/api/vm", SMALL | {"name": "by-old"}, key="old-1")
        assert (await agent.ask("POST", "/api/image/fsck"))["findings"] == []
        await agent.ask("GET", "/api/vm/by-old")


@pytest.mark.parametrize("inviter", ["old", "new"])
async def test_both_are_one_fleet(inviter: str, old: list[str], tmp_path: Path) -> None:
    async with (
        running(old, tmp_path / "old", "--hypervisor", "fake://") as one,
        running(PRESENT, tmp_path / "new", "--hypervisor", "fake://") as other,
    ):
        nodes = {"old": one, "new": other}
        for node in nodes.values():
            await node.upload()
        joiner = "new" if inviter == "old" else "old"
        ticket = await nodes[inviter].ask("POST", "/api/p2p/invite", {"role": "admin"})
        await nodes[joiner].ask("POST", "/api/p2p/join", {"ticket": ticket["ticket"]})
        for here, there in (("old", "new"), ("new", "old")):
            await online(nodes[here], there)
            await use(nodes[here], there)


async def online(node: Agent, peer: str) -> None:
    with trio.fail_after(20):
        while True:
            peers = (await node.ask("GET", "/api/p2p/peers"))["peers"]
            if any(each["name"] == peer and each["status"] == "online" for each in peers):
                return
            await trio.sleep(0.05)


async def use(node: Agent, peer: str) -> None:
    """Everything that one does with a peer's VMs, images and operations."""
    root = f"/api/remote/{peer}"
    spec = SMALL | {"name": "web", "start": True, "labels": {"a": "b"}}
    made = await node.ask("POST", f"{root}/vm", spec, key=f"to-{peer}")
    again = await node.ask("POST", f"{root}/vm", spec, key=f"to-{peer}")
    assert made["vm"]["id"] == again["vm"]["id"]
    assert await names(node, f"{root}/vm") == {"web"}
    for action in ("pause", "resume"):
        await node.ask("POST", f"{root}/vm/web/{action}")
    forward = await node.ask("POST", f"{root}/vm/web/port-forward", {"host_port": 0, "guest_port": 80})
    async with httpx.AsyncClient(timeout=20) as http:
        assert (await http.get(f"http://127.0.0.1:{forward['host_port']}/")).status_code == 200
    await node.ask("POST", f"{root}/vm/web/stop", {"force": True})
    await node.ask("GET", f"{root}/health")
    assert (await node.ask("GET", f"{root}/image"))["images"][0]["name"] == "disk"
    kinds = {each["kind"] for each in (await node.ask("GET", f"{root}/operations"))["operations"]}
    assert {"create_vm", "pause_vm", "stop_vm"} <= kinds
    missing = await node.ask("GET", f"{root}/vm/none", status=404)
    assert missing["code"] == "vm_not_found"
    message = {"peer_id": peer, "message_type": "NOTE", "data": {"text": "hello"}}
    await node.ask("POST", "/api/p2p/message", message)
    await node.ask("DELETE", f"{root}/vm/web", {"force": True})


async def test_our_listings_are_filtered_though_the_former_node_does_not_know_how(
    old: list[str], tmp_path: Path
) -> None:
    async with running(old, tmp_path / "old", "--hypervisor", "fake://") as node:
        await node.upload()
        for name in ("a", "b", "c"):
            await node.ask("POST", "/api/vm", SMALL | {"name": name, "labels": {"own": name}, "start": name != "b"})

        async def rows(*command: str) -> list[Any]:
            environment = {**os.environ, "TWINSHARE_API": node.url}
            argv = [sys.executable, "-m", "twinshare", *command, "--json"]
            done = await trio.run_process(argv, capture_stdout=True, env=environment)
            return list(json.loads(done.stdout))

        listed = await rows("vm", "ls", "--filter", "status=running", "--sort", "-name", "--limit", "1")
        assert [vm["name"] for vm in listed] == ["c"]
        assert [vm["name"] for vm in await rows("vm", "ls", "--filter", "label=own=b")] == ["b"]
        assert len(await rows("image", "ls", "--filter", "name=disk", "--limit", "2")) == 1
        kinds = {each["kind"] for each in await rows("op", "ls", "--filter", "kind=create_vm", "--limit", "9")}
        assert kinds == {"create_vm"}
        assert len(await rows("vm", "ls", "--fleet", "--filter", "name=a")) == 1
