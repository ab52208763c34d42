"""Images of peers: fetched for a VM or by name, from all that have them, whatever happens on the way."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import spec
from tests.agent.remote import Remote
from tests.nodes.images import DISK, MIB, Sent, content, give, half, pull
from tests.nodes.test_in_memory import call, eventually, join, open_fleet, open_node_on
from tests.stopwatch import within
from twinshare.agent.images import peer_pull
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.agent.p2p.mesh_client import MeshClient
from twinshare.agent.reach import fleet_images
from twinshare.agent.reach.fleet_images import FleetImages
from twinshare.protocols.access import Role
from twinshare.protocols.errors import (
    ImageNotFound,
    InvalidRequest,
    OperationCancelled,
    PeerUnreachable,
)
from twinshare.protocols.operation import OperationState

pytestmark = pytest.mark.usefixtures("remote")


async def test_a_vm_starts_from_an_image_that_only_a_peer_has(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (_, (a, b, c)):
        given = await give(a)
        made = await call(b, "create_vm", spec=spec(image="web:v1", start=True))
        assert (made.status, made.image) == ("running", "web:v1")
        image = await call(b, "get_image", image="web:v1")
        assert (image.digest, image.used_by, image.source) == (given.digest, ["one"], "fleet: node-0")
        assert content(b, image) == DISK + bytes(-len(DISK) % 512)
        made = await call(a, "create_vm", "node-2", spec=spec(image="web:v1"))
        assert made.node == "node-2", "and for a VM that is made through a peer"
        assert half(b) == half(c) == []


async def test_a_pull_by_name_by_digest_and_under_another_name(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        given = await give(a)
        image = await pull(b, "web:v1", "mine:v2")
        assert (image.name, image.tag, image.digest) == ("mine", "v2", given.digest)
        image = await pull(b, given.digest)
        assert (image.name, image.tag) == ("web", "v1")
        await call(b, "remove_image", image="web:v1")
        await give(b, "web:v1", b"another disk")
        image = await pull(b, given.digest)
        assert (image.name, image.tag) == ("web", given.digest[7:19])
        with pytest.raises(ImageNotFound):
            await pull(b, "nobody:has")
        with pytest.raises(ImageNotFound):
            await call(b, "create_vm", spec=spec("two", image="nobody:has"))
        with pytest.raises(InvalidRequest):
            await pull(b, "../web")
        assert [vm.name for vm in await call(b, "list_vms")] == []


async def test_only_what_is_missing_is_sent(tmp_path: Path, sent: Sent) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        await give(b, "old", DISK)
        changed = bytearray(DISK)
        changed[MIB : MIB + 10] = b"0123456789"
        newer = await give(a, "web:v2", bytes(changed))
        image = await pull(b, "web:v2")
        assert image.digest == newer.digest
        assert 0 < sent.chunks <= 4
        assert content(b, image) == content(a, newer)


async def test_several_peers_bring_it_together_and_one_may_go(tmp_path: Path, sent: Sent) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (network, (a, b, c)):
        await give(a)
        image = await pull(b)
        before = sent.chunks
        gone = 0

        def harm(answer: bytes) -> bytes:
            nonlocal gone
            gone += 1
            if gone == 3:
                trio.from_thread.run_sync(network.cut, a.peer_id, c.peer_id)
            return answer

        sent.harm = harm
        with trio.fail_after(30):
            image = await pull(c)
        assert image.source in {"fleet: node-0, node-1", "fleet: node-1, node-0"}
        assert content(c, image) == DISK + bytes(-len(DISK) % 512)
        assert sent.chunks - before < 3 * before


@pytest.mark.parametrize("cut", ["the line", "the stream"])
async def test_after_a_cut_it_goes_on_where_it_was(
    tmp_path: Path, sent: Sent, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (network, (a, b)):
        await give(a)

        def harm(answer: bytes) -> bytes:
            if sent.answers == 4:
                if cut == "the stream":
                    raise trio.BrokenResourceError
                trio.from_thread.run_sync(network.drop, a.peer_id, b.peer_id)
            return answer

        sent.harm = harm
        with trio.fail_after(30):
            image = await pull(b)
        assert content(b, image) == DISK + bytes(-len(DISK) % 512)
        whole = len(next(iter(a.backends.images.repository.indexes()))[0])
        assert sent.chunks <= whole + 4 * 64, "what came before the cut is not sent again"


async def test_what_came_is_kept_for_the_next_attempt(tmp_path: Path, sent: Sent) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        whole = len(next(iter(a.backends.images.repository.indexes()))[0])

        def harm(answer: bytes) -> bytes:
            if sent.answers > 3:
                raise trio.BrokenResourceError
            return answer

        sent.harm = harm
        with pytest.raises(PeerUnreachable):
            await pull(b)
        assert [path.suffix for path in half(b)] == [".pull"]
        assert [image.name for image in await call(b, "list_images")] == ["disk"]
        came, sent.harm = sent.chunks, bytes
        image = await pull(b)
        assert content(b, image) == DISK + bytes(-len(DISK) % 512)
        assert sent.chunks - came < whole
        assert half(b) == []


async def test_the_registry_steps_in_when_the_fleet_fails(tmp_path: Path, sent: Sent, remote: Remote) -> None:
    remote.contents["web:v1"] = DISK
    sent.harm = lambda answer: os.urandom(len(answer))
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        image = await pull(b)
        assert (remote.pulls, image.source) == (1, "web:v1")
        await pull(b)
        assert remote.pulls == 2, "what is here is brought up to date by whoever publishes it"


async def test_the_fleet_comes_before_the_registry(tmp_path: Path, remote: Remote) -> None:
    remote.contents["web:v1"] = b"what is published"
    remote.contents["registry.example/org/web:v1"] = b"what is published there"
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        given = await give(a)
        assert (await pull(b)).digest == given.digest
        await give(a, "registry.example/org/web:v1")
        await call(b, "create_vm", spec=spec(image="registry.example/org/web:v1"))
        assert remote.pulls == 0
        assert (await call(b, "get_image", image="registry.example/org/web:v1")).digest == given.digest


async def test_what_localhost_has_is_nobody_elses(tmp_path: Path, remote: Remote) -> None:
    remote.contents["localhost:5000/web:v1"] = bytes(1024)
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a, "localhost:5000/web:v1")
        await call(b, "create_vm", spec=spec(image="localhost:5000/web:v1"))
        assert remote.pulls == 1


async def test_a_fetch_is_cancelled_at_once_and_its_creation_leaves_nothing(tmp_path: Path, sent: Sent) -> None:
    begun = trio.Event()

    def harm(answer: bytes) -> bytes:
        trio.from_thread.run_sync(begun.set)
        if sent.answers >= 2:
            trio.from_thread.run(trio.sleep, 0.05)
        return answer

    sent.harm = harm
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                with pytest.raises(OperationCancelled):
                    await call(b, "create_vm", spec=spec(image="web:v1"))

            nursery.start_soon(create)
            await begun.wait()
            [operation] = [one for one in await b.operations.list() if one.kind == "create_vm"]
            assert operation.progress.message.startswith("fetching from node-0")
            with within(5):
                assert (await b.operations.cancel(operation.id)).state is OperationState.CANCELLED
        assert list((tmp_path / "node-1" / "vms").iterdir()) == []
        assert [image.name for image in await call(b, "list_images")] == ["disk"]


async def test_two_at_once_fetch_it_once(tmp_path: Path, sent: Sent) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        whole = len(next(iter(a.backends.images.repository.indexes()))[0])
        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):

                async def create(name: str) -> None:
                    await call(b, "create_vm", spec=spec(name, image="web:v1"))

                nursery.start_soon(create, name)
        assert sent.chunks == whole
        assert (await call(b, "get_image", image="web:v1")).used_by == ["one", "two"]


@asynccontextmanager
async def restarting_holder(
    network: MemoryNetwork, folder: Path, founder: Node
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A member with the image `web:v1`; what is yielded ends its node, and starts it again a second later."""
    restart, up = trio.Event(), trio.Event()

    async def live() -> None:
        async with open_node_on(network, folder, "holder") as node:
            await join(node, founder)
            await give(node)
            up.set()
            await restart.wait()
        await trio.sleep(1)
        async with open_node_on(network, folder, "holder"):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        await up.wait()

        async def again() -> None:
            restart.set()
            with within(10):
                while founder.mesh.require_running().sessions.live:
                    await trio.sleep(0.01)

        yield again
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stage", ["before", "asked", "index", "chunks"])
@pytest.mark.parametrize("way", ["pull", "create"])
async def test_the_only_holder_restarts_and_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: Sent, stage: str, way: str
) -> None:
    async with open_fleet(tmp_path) as (network, (a,)), restarting_holder(network, tmp_path, a) as restart:
        if stage == "before":
            await restart()
        owner, name = {"asked": (FleetImages, "_fetch"), "index": (peer_pull, "_ask_index")}.get(stage, (None, ""))
        used: list[int] = []
        if owner is not None:
            work = getattr(owner, name)

            async def first_a_restart(*arguments: object) -> object:
                if not used:
                    used.append(1)
                    await restart()
                return await work(*arguments)

            monkeypatch.setattr(owner, name, first_a_restart)

        def harm(answer: bytes) -> bytes:
            if stage == "chunks" and sent.answers == 3:
                trio.from_thread.run(restart)
            return answer

        sent.harm = harm
        with trio.fail_after(40):
            if way == "pull":
                await pull(a)
            else:
                await call(a, "create_vm", spec=spec(image="web:v1"))
        assert content(a, await call(a, "get_image", image="web:v1")) == DISK + bytes(-len(DISK) % 512)


async def test_a_holder_that_does_not_return_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_images, "ABSENCE", 2.0)
    async with open_fleet(tmp_path) as (network, (a,)):
        async with open_node_on(network, tmp_path, "holder") as node:
            await join(node, a)
            await give(node)
        with within(10):
            async with trio.open_nursery() as nursery:

                async def refused() -> None:
                    with pytest.raises(PeerUnreachable, match="holder did not return"):
                        await pull(a)

                nursery.start_soon(refused)
                await eventually(lambda: says(a, "waiting for holder, reachable a moment ago"))
        await trio.sleep(2.0)
        with trio.fail_after(30), pytest.raises(ImageNotFound):
            await pull(a)


async def says(node: Node, message: str) -> bool:
    return any(one.progress and one.progress.message == message for one in await node.operations.list())


async def test_one_name_for_several_disks_is_what_most_have_then_the_newest(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN, Role.ADMIN) as (_, (a, b, c, d)):
        older = await give(a, "web:v1", b"older")
        newer = await give(b, "web:v1", b"newer")
        assert (await pull(d)).digest == newer.digest
        await call(d, "remove_image", image="web:v1")
        await give(c, "web:v1", b"older")
        assert (await pull(d)).digest == older.digest


async def test_a_creation_that_a_crash_broke_off_finds_the_fleet_again(tmp_path: Path) -> None:
    """The journal is taken up before the mesh is there."""
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await give(a)
        client = MeshClient(b.mesh.context)
        fleet = FleetImages(b.backends.images, client)
        found: list[bool] = []

        async def look() -> None:
            found.append(await fleet.has("web:v1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            client.switched(b.mesh.running)
        assert found == [True]
        client.switched(None)
        assert not await fleet.has("web:v1"), "and without P2P services there is none"
