"""Users and misfortunes at random upon real nodes, and what must hold whatever the order: one seed, one mixture.

Clients ask any node for anything on any node, repeat what got lost under its idempotency key, and judge each answer.
Agents are killed and stand still, libvirt daemons and guests are killed; each node has one guest that nobody touches.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.guest.disks import tick_disk
from twinshare.agent.testing import AgentProcess

NAMES = ("a", "b")
UNTOUCHED = "steady"
AWAY = (502, 503)
"""Statuses of what may be tried again: a node or its hypervisor is away."""
SPOKEN = (*AWAY, 504, 507)
"""The only answers from 500 up that a node may give."""
SETTLED = {"running", "stopped", "paused", "crashed"}
CALM_WITHIN = 30.0

Answer = tuple[int, Any]


@dataclass
class Soak:
    """`wrong` are sentences on what should not have been."""

    nodes: Sequence[AgentProcess]
    chance: random.Random
    wrong: list[str] = field(default_factory=list)
    asked: int = 0
    made: int = 0

    async def prepare(self) -> None:
        for node in self.nodes:
            await self.ask(node, "POST", "/api/image/import?name=tick", content=tick_disk())
            await self.ask(
                node, "POST", "/api/vm", {**_spec(UNTOUCHED), "start": True}, key=f"steady-{node.data_dir.name}"
            )

    async def run(self, seconds: float, clients: int) -> None:
        """Clients and misfortunes, for so long; each ends what it has begun."""
        ends = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._client, ends)
            nursery.start_soon(self._misfortunes, ends)

    # -- clients

    async def ask(
        self, via: AgentProcess, verb: str, path: str, body: Any = None, *, key: str = "", content: bytes | None = None
    ) -> Answer | None:
        """One request; None when the node was not there. An answer of the wrong kind is noted."""
        headers = {"Idempotency-Key": key} if key else {}
        headers |= {"content-type": "application/octet-stream"} if content else {}
        self.asked += 1
        try:
            async with httpx.AsyncClient(base_url=via.url, timeout=60, trust_env=False) as http:
                answer = await http.request(verb, path, json=body, content=content, headers=headers)
        except httpx.ReadTimeout:
            self.wrong.append(f"{verb} {path} was not answered")
            return None
        except httpx.HTTPError:
            return None
        if answer.status_code >= 500 and answer.status_code not in SPOKEN:
            self.wrong.append(f"{verb} {path}: {answer.status_code} {answer.text}")
        return answer.status_code, answer.json()

    async def _persist(self, verb: str, path: str, body: Any = None) -> None:
        """A change through any node on any node, until somebody says how it ended."""
        target, key = self.chance.choice(self.nodes), f"{self.chance.getrandbits(96):x}"
        for _ in range(20):
            via = self.chance.choice(self.nodes)
            here = "/api" if via is target else f"/api/remote/{target.data_dir.name}"
            answer = await self.ask(via, verb, f"{here}{path}", body, key=key)
            if answer is not None and answer[0] not in AWAY:
                self.made += verb == "POST" and path == "/vm" and answer[0] == 200
                return
            await trio.sleep(self.chance.uniform(0.05, 0.4))

    async def _client(self, ends: float) -> None:
        while trio.current_time() < ends:
            name, act = self.chance.choice(NAMES), self.chance.choice(("create", "create", "start", "look", "more"))
            if act == "create":
                await self._persist("POST", "/vm", {**_spec(name), "start": self.chance.random() < 0.7})
            elif act == "start":
                await self._persist("POST", f"/vm/{name}/{self.chance.choice(('start', 'pause', 'resume'))}")
            elif act == "look":
                path = self.chance.choice(("/api/vm", "/api/fleet/vm", "/api/operations", "/api/image"))
                await self.ask(self.chance.choice(self.nodes), "GET", path)
            else:
                await self._change_more(name)

    async def _change_more(self, name: str) -> None:
        acts: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: self._persist("DELETE", f"/vm/{name}", {"force": True}),
            lambda: self._persist("POST", f"/vm/{name}/restart", {"force": True}),
            lambda: self._persist("POST", "/image", {"vm": UNTOUCHED, "name": f"cap-{self.chance.randrange(3)}"}),
            lambda: self._persist("POST", "/image/prune", {"all": True}),
            lambda: self._persist("POST", "/image/pull", {"image": "tick"}),
        )
        await self.chance.choice(acts)()

    # -- misfortunes

    async def _misfortunes(self, ends: float) -> None:
        while trio.current_time() < ends:
            node = self.chance.choice(self.nodes)
            fate = self.chance.choice((self._kill, self._stand_still, self._kill_daemon, self._kill_guest))
            await fate(node)
            await trio.sleep(self.chance.uniform(0.1, 0.8))

    async def _kill(self, node: AgentProcess) -> None:
        await node.kill()
        await node.start()

    async def _stand_still(self, node: AgentProcess) -> None:
        node.freeze()
        await trio.sleep(self.chance.uniform(0.1, 2.5))
        node.thaw()

    async def _kill_daemon(self, node: AgentProcess) -> None:
        _kill_what(_runtime(node) / "daemon.pid", b"libvirtd")

    async def _kill_guest(self, node: AgentProcess) -> None:
        _kill_what(_runtime(node) / f"libvirt/qemu/run/{self.chance.choice(NAMES)}.pid", b"qemu-system")

    # -- what holds

    async def calm(self) -> None:
        """Within half a minute all is settled, and every node says the same. Raises: AssertionError."""
        unsettled: list[str] = ["nothing was asked"]
        with trio.move_on_after(CALM_WITHIN):
            while unsettled:
                await trio.sleep(0.2)
                unsettled = await self._unsettled()
        assert unsettled == [], unsettled

    async def _unsettled(self) -> list[str]:
        found, own, fleet_lists = [], set(), []
        for node in self.nodes:
            name = node.data_dir.name
            operations = (await self._get(node, "/api/operations"))["operations"]
            found += [f"{name}: {one['kind']} is {one['state']}" for one in operations if not _has_ended(one)]
            vms = (await self._get(node, "/api/vm"))["vms"]
            found += [f"{name}: {vm['name']} is {vm['status']}" for vm in vms if vm["status"] not in SETTLED]
            if len({vm["name"] for vm in vms}) < len(vms):
                found.append(f"{name}: a name is there twice")
            own |= {(vm["id"], vm["status"], True) for vm in vms}
            fleet_lists.append((await self._get(node, "/api/fleet/vm"))["vms"])
        for rows in fleet_lists:
            if {(row["id"], row["status"], row["reachable"]) for row in rows} != own or len(rows) != len(own):
                found.append("a fleet's list is not the sum of its nodes'")
        return found

    async def log(self, node: AgentProcess) -> str:
        """All that the guest has said that nobody touches."""
        return str((await self._get(node, f"/api/vm/{UNTOUCHED}/log?offset=0&limit=262144"))["text"])

    async def _get(self, node: AgentProcess, path: str) -> Any:
        answer = await self.ask(node, "GET", path)
        assert answer is not None, path
        assert answer[0] == 200, answer
        return answer[1]

    async def clear(self) -> None:
        """Every VM and every image can go, from anywhere, and nothing stays. Raises: AssertionError."""
        for node in self.nodes:
            name = node.data_dir.name
            for vm in (await self._get(node, "/api/vm"))["vms"]:
                via = next(other for other in self.nodes if other is not node)
                path = f"/api/remote/{name}/vm/{vm['id']}"
                answer = await self.ask(via, "DELETE", path, {"force": True}, key=f"clear-{vm['id']}")
                assert answer is not None, vm
                assert answer[0] == 200, answer
            answer = await self.ask(node, "POST", "/api/image/prune", {"all": True}, key="clear")
            assert answer is not None, name
            assert (answer[0], (await self._get(node, "/api/image"))["images"]) == (200, []), answer
            assert _left(node) == [], _left(node)


def _spec(name: str) -> dict[str, Any]:
    return {"name": name, "image": "tick", "memory": 64, "disk_size": 1, "cpu_cores": 1}


def _has_ended(operation: dict[str, Any]) -> bool:
    """And says why, unless all went well."""
    state = operation["state"]
    return state == "done" or (state in ("failed", "cancelled") and bool(operation["error"]))


def _runtime(node: AgentProcess) -> Path:
    return node.data_dir / "hypervisor" / "r"


def _kill_what(file: Path, word: bytes) -> None:
    """SIGKILL what a file of ours names, if it is still that."""
    try:
        pid = int(file.read_text())
        if word in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return


def _left(node: AgentProcess) -> list[str]:
    """Files of VMs and images, and domains of libvirt."""
    folders = [path for name in ("vms", "scratch", "images") for path in (node.data_dir / name).rglob("*")]
    files = [path for path in folders if not path.is_dir() and not path.name.startswith("images.db")]
    vms = list((node.data_dir / "vms").iterdir())
    domains = [
        *(node.data_dir / "hypervisor").rglob("libvirt/qemu/*.xml"),
        *_runtime(node).glob("libvirt/qemu/run/*.xml"),
    ]
    return sorted(str(path.relative_to(node.data_dir)) for path in {*files, *vms, *domains})
