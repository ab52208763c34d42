"""The fleet as its users see it: any node's REST works on any node's VMs, whoever comes, goes and comes back."""

from pathlib import Path

import httpx
import pytest
import trio

from tests.guest.disks import tick_disk, tiny_disk
from tests.nodes.fleet import PEER_TIMEOUT, agent_file, ask, fleet, join, online, start, until_online
from tests.stopwatch import Stopwatch
from twinshare.agent.testing import AgentProcess

pytestmark = pytest.mark.system

SMALL = {"memory": 128, "disk_size": 1, "cpu_cores": 1}


async def upload(node: AgentProcess, name: str, content: bytes) -> None:
    async with httpx.AsyncClient(base_url=node.url, timeout=60) as http:
        headers = {"content-type": "application/octet-stream"}
        answer = await http.post(f"/api/image/import?name={name}", content=content, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_a_vm_of_another_node_as_if_it_were_here(tmp_path: Path) -> None:
    """Created through node 1 on node 3, seen and stopped from node 2, deleted from node 1; its guest truly boots."""
    tiny = await tiny_disk()
    async with fleet(tmp_path, 3, hypervisor=None) as (one, two, three):
        await upload(three, "tiny", tiny.read_bytes())
        peer = agent_file(three)["peer_id"]
        made = await ask(one, "POST", f"/api/remote/{peer}/vm", {"name": "far", "image": "tiny", **SMALL})
        assert (made["success"], made["peer_id"], made["name"], made["status"]) == (True, peer, "far", "stopped")
        id = made["vm_id"]
        started = await ask(one, "POST", f"/api/remote/{peer}/vm/{id}/start")
        assert (started["vm_id"], started["status"]) == (id, "running")
        with trio.fail_after(60):
            while "ready" not in (await ask(one, "GET", f"/api/remote/node-3/vm/{id}/log"))["text"]:
                await trio.sleep(0.2)
        rows = (await ask(two, "GET", "/api/fleet/vm"))["vms"]
        assert [(row["name"], row["node"], row["reachable"], row["status"]) for row in rows] == [
            ("far", "node-3", True, "running")
        ]
        stopped = await ask(two, "POST", f"/api/remote/{peer}/vm/{id}/stop", {"force": False})
        assert (stopped["vm_id"], stopped["status"]) == (id, "stopped")
        gone = await ask(one, "DELETE", f"/api/remote/{peer}/vm/{id}", {"delete_disk": True})
        assert (gone["success"], gone["peer_id"], gone["vm_id"], gone["name"]) == (True, peer, id, "far")
        assert (await ask(three, "GET", "/api/vm"))["vms"] == []
        missing = await ask(one, "GET", f"/api/remote/{peer}/vm/{id}", status=404)
        assert (missing["code"], missing["error"]) == ("vm_not_found", f"Virtual machine '{id}' not found")
        await ask(one, "GET", "/api/remote/nobody/vm", status=404)


async def test_a_fourth_node_joins_by_ticket_and_works_with_all_at_once(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3) as nodes:
        fourth = await start(tmp_path / "node-4", hypervisor="fake://")
        try:
            stopwatch = Stopwatch(fourth.pid, nodes[1].pid)
            await join(fourth, nodes[1])
            taken = stopwatch.seconds
            await until_online(fourth, "node-1", "node-2", "node-3", within=60)
            for number, node in enumerate(nodes, 1):
                assert (await ask(fourth, "GET", f"/api/remote/node-{number}/vm"))["vms"] == []
                assert (await ask(node, "GET", "/api/remote/node-4/vm"))["vms"] == []
            assert taken < 2, taken
        finally:
            await fourth.stop()


async def test_a_killed_node_is_seen_offline_and_found_again_on_another_port(tmp_path: Path) -> None:
    async with fleet(tmp_path, 3, hypervisor=None) as (one, two, three):
        await upload(three, "tick", tick_disk())
        spec = {"name": "far", "image": "tick", "memory": 64, "disk_size": 1, "cpu_cores": 1, "start": True}
        made = await ask(one, "POST", "/api/remote/node-3/vm", spec)
        assert made["peer_id"] == agent_file(three)["peer_id"]
        before = agent_file(three)["addresses"]
        await ask(two, "GET", "/api/fleet/vm")
        await three.kill()
        for node, other in ((one, "node-2"), (two, "node-1")):
            await until_online(node, other, within=PEER_TIMEOUT + 10)
            stopwatch = Stopwatch(node.pid)
            rows = (await ask(node, "GET", "/api/fleet/vm"))["vms"]
            assert stopwatch.seconds < 2
            assert [(row["name"], row["reachable"]) for row in rows] == [("far", False)]
        refused = await ask(one, "GET", "/api/remote/node-3/vm", status=502)
        assert refused["code"] == "peer_unreachable"
        await three.start()
        assert agent_file(three)["addresses"] != before
        for node, other in ((one, "node-2"), (two, "node-1")):
            await until_online(node, other, "node-3", within=60)
        [row] = (await ask(two, "GET", "/api/remote/node-3/vm"))["vms"]
        assert (row["id"], row["status"]) == (made["vm_id"], "running")
        await ask(one, "DELETE", "/api/remote/node-3/vm/far", {"force": True})


async def test_a_message_is_answered_and_published(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as (one, two):
        hello = {
            "peer_id": agent_file(two)["peer_id"],
            "message_type": "HELLO",
            "data": {"message": "Hello from REST API!"},
        }
        answer = await ask(one, "POST", "/api/p2p/message", hello)
        assert answer == {"response": {"status": "ok", "message": "Hello received"}}
        await ask(one, "POST", "/api/p2p/stop")
        stopped = await ask(one, "GET", "/api/remote/node-2/vm", status=503)
        assert stopped["error"] == "P2P services are not running"
        assert (await ask(one, "GET", "/api/vm"))["vms"] == []
        again = await ask(one, "POST", "/api/p2p/start")
        assert (again["status"], again["id"]) == ("started", agent_file(one)["peer_id"])
        await until_online(one, "node-2")
        assert await online(two) == {"node-1"}
