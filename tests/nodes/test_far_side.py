"""The far node stops (SIGSTOP) or dies (kill -9) in the middle of every kind of call.

Each caller learns in time, all else goes on, and once the node is back everything works: done once, nothing left over.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.nodes.fleet import agent_file, ask, join, start, until_online
from tests.stopwatch import Stopwatch
from twinshare.agent.images.contract_samples import raw_disk, with_boot_sector
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import TwinshareError

pytestmark = pytest.mark.system

LIMIT = 6.0
"""Seconds within which a caller learns that a peer cannot be reached, however patient the node is else."""
PEER_TIMEOUT = 8.0
"""Seconds after which a silent peer counts as gone: what has no caller that waits, a tunnel, ends then."""
SPEC = {"image": "disk", "memory": 64, "disk_size": 1, "cpu_cores": 1}
TUNNELS = 5
SPARE = 2
"""Handles: two nodes that find each other again may have dialled each other both, and keep both connections."""
FAR = "/api/remote/node-2"
# Each is asked of the near node while the far one is silent.
SHORT = {
    "list": ("GET", f"{FAR}/vm", None),
    "picture": ("GET", f"{FAR}/vm/web/screenshot", None),
    "log": ("GET", f"{FAR}/vm/web/log", None),
    "create": ("POST", f"{FAR}/vm", {"name": "made", **SPEC}),
    "restart": ("POST", f"{FAR}/vm/web/restart", {"force": True}),
    "message": ("POST", "/api/p2p/message", {"peer_id": "node-2", "message_type": "NOTE", "data": {"n": 1}}),
    "forward": ("POST", f"{FAR}/vm/web/port-forward", {"host_port": 0, "guest_port": 80}),
}
Answers = dict[str, tuple[int, dict[str, Any], float]]


def large() -> bytes:
    """A disk that takes a while to fetch."""
    return with_boot_sector(os.urandom(64 << 20))


def handles(node: AgentProcess) -> int:
    return len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


async def until(condition: Callable[[], Awaitable[bool]], within: float) -> None:
    with trio.fail_after(within):
        while not await condition():
            await trio.sleep(0.05)


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[list[AgentProcess]]:
    """The near node, the far one, and one that has nothing to do with it. Guests never power off by themselves."""
    nodes = []
    try:
        for number in (1, 2, 3):
            uri = f"fake://{folder}/{number}.json?shutdown_after=never"
            nodes.append(await start(folder / f"node-{number}", hypervisor=uri, peer_timeout=PEER_TIMEOUT))
            if number > 1:
                await join(nodes[-1], nodes[0])
        await until_online(nodes[0], "node-2", "node-3")
        yield nodes
    finally:
        with trio.CancelScope(shield=True):
            for node in nodes:
                await node.kill()


class Scene:
    """One far node that falls silent, and all that is under way with it then."""

    def __init__(self, near: AgentProcess, far: AgentProcess, http: httpx.AsyncClient, port: int, mark: str) -> None:
        self.near, self.far, self.http, self.port, self.mark = near, far, http, port, mark
        self.answers: Answers = {}
        self.events: list[str] = []

    async def ask(self, name: str, verb: str, path: str, body: Any = None) -> None:
        stopwatch = Stopwatch(self.near.pid)
        keyed = {"idempotency-key": f"{name}-{self.mark}"} if verb == "POST" else {}
        answer = await self.http.request(verb, path, json=body, headers=keyed)
        found = answer.json() if answer.headers["content-type"] == "application/json" else {}
        self.answers[name] = (answer.status_code, found, stopwatch.seconds)

    async def tunnel(self, name: str) -> None:
        """A connection to the guest on which nothing is said yet."""
        with trio.fail_after(30):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                await stream.send_all(b"GET / HTTP/1.0\r\n")
                stopwatch = Stopwatch(self.near.pid)
                try:
                    heard = await stream.receive_some()
                except trio.BrokenResourceError:
                    heard = b""
        self.answers[name] = (502, {"heard": heard.decode()}, stopwatch.seconds)

    async def console(self, task_status: trio.TaskStatus[None]) -> None:
        async with RESTClient(self.near.url) as client, client.console("web", "node-2") as console:
            await console.send(b"hello")
            assert await console.receive()
            task_status.started()
            stopwatch = Stopwatch(self.near.pid)
            try:
                while await console.receive():
                    pass
                self.answers["console"] = (200, {}, stopwatch.seconds)
            except TwinshareError as error:
                self.answers["console"] = (error.status, {"code": error.code}, stopwatch.seconds)

    async def pulling(self) -> dict[str, Any]:
        """The newest operation that fetches a disk from the far node; it has no caller that waits."""
        found = (await ask(self.near, "GET", "/api/operations"))["operations"]
        pull: dict[str, Any] = next(op for op in found if op["kind"] == "pull_image")
        return pull

    async def _pull_is_under_way(self) -> bool:
        pull = await self.pulling()
        return bool(pull["state"] == "running" and pull["progress"]["done"] > 0)

    async def listen(self, task_status: trio.TaskStatus[None]) -> None:
        """The near node's events: they go on, and tell that the far node goes and comes."""
        async with self.http.stream("GET", "/api/events?types=peer.*", timeout=None) as answer:
            task_status.started()
            async for line in answer.aiter_lines():
                if line.startswith("event:"):
                    self.events.append(line.removeprefix("event:").strip())

    async def others_go_on(self) -> None:
        """What has nothing to do with the far node, again and again."""
        while True:
            for path in ("/api/vm", "/api/remote/node-3/vm", "/api/health"):
                stopwatch = Stopwatch(self.near.pid)
                answer = await self.http.get(path)
                assert (answer.status_code, stopwatch.seconds < 2) == (200, True), (path, answer.text)
            stopwatch = Stopwatch(self.near.pid)
            assert (await self.http.get("/api/fleet/vm")).status_code == 200
            assert stopwatch.seconds < 3
            await trio.sleep(0.1)

    async def stopping(self) -> list[dict[str, Any]]:
        """The operation of the long call, as the far node's own users see it."""
        found = (await ask(self.far, "GET", "/api/operations"))["operations"]
        return [op for op in found if op["idempotency_key"] == f"stop-{self.mark}"]

    async def play(self, silence: Callable[[], Awaitable[None]]) -> None:
        """Begin long calls, freeze the far node, begin short ones, and let `silence` take its course."""
        async with trio.open_nursery() as others:
            async with trio.open_nursery() as calls:
                calls.start_soon(self.ask, "stop", "POST", f"{FAR}/vm/slow/stop", {"timeout": 60})
                for number in range(TUNNELS):
                    calls.start_soon(self.tunnel, f"tunnel {number}")
                await until(self._stop_is_under_way, 60)
                [operation] = await self.stopping()
                calls.start_soon(self.ask, "wait", "GET", f"{FAR}/operations/{operation['id']}/wait?timeout=60")
                await others.start(self.listen)
                await calls.start(self.console)
                headers = {"prefer": "respond-async"}
                await self.http.post("/api/image/pull", json={"image": self.mark}, headers=headers)
                await until(self._pull_is_under_way, 60)
                self.far.freeze()
                others.start_soon(self.others_go_on)
                for name, (verb, path, body) in SHORT.items():
                    calls.start_soon(self.ask, name, verb, path, body)
                await silence()
            await until(self._offline_is_shown, 2)
            others.cancel_scope.cancel()

    async def _offline_is_shown(self) -> bool:
        return self.events[:1] == ["peer.offline"]

    async def _stop_is_under_way(self) -> bool:
        return [op["state"] for op in await self.stopping()] == ["running"]

    def check_answers(self) -> None:
        tunnels = {f"tunnel {number}" for number in range(TUNNELS)}
        assert self.answers.keys() == {*SHORT, *tunnels, "stop", "wait", "console"}
        for name, (status, body, seconds) in self.answers.items():
            assert seconds < (LIMIT if name in {*SHORT, "stop", "wait"} else PEER_TIMEOUT + 1), (name, seconds)
            assert status == 502, (name, status, body)
            if name.startswith("tunnel"):
                assert body["heard"] == ""
                continue
            assert body["code"] == "peer_unreachable", (name, body)
            if name in {"stop", "create", "restart"}:
                key = body["details"].get("idempotency_key")
                assert key in {None, f"{name}-{self.mark}"}, "an answer that it goes on has its key"
        assert self.answers["stop"][1]["details"]["idempotency_key"] == f"stop-{self.mark}"


async def check_all_is_well(scene: Scene) -> None:
    """Everything that failed is asked again, with its key, and was done once."""
    await until_online(scene.near, "node-2", "node-3", within=60)
    [operation] = await scene.stopping()
    for _ in range(2):
        for name in ("create", "restart", "message"):
            await scene.ask(name, *SHORT[name])
            assert scene.answers[name][0] == 200, scene.answers[name]
    for name in ("list", "picture", "log"):
        await scene.ask(name, *SHORT[name])
        assert scene.answers[name][0] == 200, scene.answers[name]
    assert [op["id"] for op in await scene.stopping()] == [operation["id"]]
    operations = (await ask(scene.far, "GET", "/api/operations"))["operations"]
    keys = [op["idempotency_key"] for op in operations]
    for name in ("create", "restart"):
        assert keys.count(f"{name}-{scene.mark}") == 1
    vms = (await ask(scene.far, "GET", "/api/vm"))["vms"]
    assert [vm["name"] for vm in vms].count("made") == 1
    pull = await scene.pulling()
    ended = await ask(scene.near, "GET", f"/api/operations/{pull['id']}/wait?timeout=40")
    assert (ended["state"], ended["error"]) == ("done", None), "it goes on by itself"
    there, here = [await ask(node, "GET", f"/api/image/{scene.mark}") for node in (scene.far, scene.near)]
    assert here["digest"] == there["digest"]
    async with await trio.open_tcp_stream("127.0.0.1", scene.port) as stream:
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with trio.fail_after(60):
            assert b"web" in b"".join([data async for data in stream])
    forwards = (await ask(scene.near, "GET", f"{FAR}/vm/web/port-forward"))["forwards"]
    assert [forward["host_port"] for forward in forwards] == [scene.port]


async def end(node: AgentProcess) -> None:
    """kill -9 a node that is silent already, once the short calls are on their way to it."""
    await trio.sleep(0.5)
    await node.kill()


async def clear(scene: Scene, hold: tuple[int, int]) -> None:
    """Undo what the scene did; then both nodes hold what they held before."""
    for operation in await scene.stopping():
        if operation["state"] in {"pending", "running"}:
            await ask(scene.far, "DELETE", f"/api/operations/{operation['id']}")
    await ask(scene.far, "DELETE", "/api/vm/made")

    async def as_before() -> bool:
        return handles(scene.near) <= hold[0] + SPARE and handles(scene.far) <= hold[1] + SPARE

    await until(as_before, 15)


async def test_every_kind_of_call_when_the_far_node_stops_and_when_it_dies(tmp_path: Path) -> None:
    async with three(tmp_path) as (near, far, _), httpx.AsyncClient(timeout=60) as upload:
        for image, content in (("disk", raw_disk(1)), ("stopped", large()), ("killed", large())):
            octets = {"content-type": "application/octet-stream"}
            sent = await upload.post(f"{far.url}/api/image/import?name={image}", content=content, headers=octets)
            assert sent.status_code == 200
        for name in ("web", "slow"):
            await ask(far, "POST", "/api/vm", {"name": name, **SPEC, "start": True})
        port = (await ask(near, "POST", f"{FAR}/vm/web/port-forward", {"host_port": 0, "guest_port": 80}))["host_port"]
        identity = agent_file(far)["peer_id"]
        for mark in ("stopped", "killed"):
            hold = (handles(near), handles(far))
            async with httpx.AsyncClient(base_url=near.url, timeout=60) as http:
                scene = Scene(near, far, http, port, mark)
                try:
                    await scene.play(partial(end, far) if mark == "killed" else trio.lowlevel.checkpoint)
                    print(
                        f"\n{mark}: answered after",
                        {name: round(answer[2], 1) for name, answer in scene.answers.items()},
                    )
                    scene.check_answers()
                finally:
                    if mark == "stopped":
                        far.thaw()
                if mark == "killed":
                    await far.start()
                assert agent_file(far)["peer_id"] == identity
                await check_all_is_well(scene)
            await clear(scene, hold)
