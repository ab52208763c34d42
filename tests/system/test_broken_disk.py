"""A real agent whose disk is full, cannot be written, or whose database is held or damaged, seen through REST."""

import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
import trio

from tests.agent.test_repair import damage
from tests.guest.disks import tick_disk
from tests.mounts import break_disk, fill, mend_disk, mounted_disk, needs_mounts
from twinshare.agent.testing import AgentDied, AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import InsufficientResources
from twinshare.protocols.vm import VmStatus

from .conftest import once

pytestmark = pytest.mark.system


async def create(client: RESTClient, name: str, *, start: bool = False) -> None:
    await client.create_vm(name=name, image="tick", memory=64, disk_size=1, start=start)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", 2048) as place:
        yield place


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[AgentProcess]:
    """An agent in the folder, with the VM `one`."""
    agent = AgentProcess(folder / "node", ["--api", "127.0.0.1:0"], {"TWINSHARE_HYPERVISOR_RESERVE_DISK": "0"})
    agent.log = folder.with_name("agent.log")
    await agent.start()
    try:
        async with RESTClient(agent.url) as client:
            await client.import_image("tick", once(tick_disk()))
            await create(client, "one")
        yield agent
    finally:
        with trio.CancelScope(shield=True):
            await agent.stop()


async def problems(client: RESTClient) -> str:
    return "\n".join((await client.node().health()).problems)


@needs_mounts
async def test_on_a_full_disk_a_node_starts_and_deletes_and_takes_nothing(disk: Path) -> None:
    async with started(disk) as agent:
        async with RESTClient(agent.url) as client:
            await create(client, "two", start=True)
            filler = fill(disk, 0)
            with pytest.raises(InsufficientResources):
                await create(client, "three")
            assert "is full" in await problems(client)
        await agent.kill()
        fill(disk, 0)
        await agent.start()
        async with RESTClient(agent.url) as client:
            assert "is full" in await problems(client)
            # What the start was given of the reserved space is for nothing else.
            with pytest.raises(InsufficientResources, match="kept for deletions"):
                await client.start_vm("one")
            assert (await client.stop_vm("two", force=True)).success
            await client.delete_vm("two")
            fill(disk, 0)
            await client.delete_vm("one")
            assert await client.list_vms() == []
            assert {op.state for op in await client.operations().list_operations() if op.kind != "create_vm"} == {
                "done"
            }
            filler.unlink()
            await create(client, "three")
            assert "is full" not in await problems(client)


@needs_mounts
async def test_a_node_outlives_a_disk_that_becomes_read_only(disk: Path) -> None:
    async with started(disk) as agent, httpx.AsyncClient(base_url=f"{agent.url}/api", timeout=30) as http:
        async with RESTClient(agent.url) as client:
            await create(client, "two", start=True)
        break_disk(disk)
        vm = {"name": "three", "image": "tick", "memory": 64, "disk_size": 1}
        token = {"name": "new", "role": "viewer"}
        stream = {"content-type": "application/octet-stream"}
        for answer in (
            await http.post("/vm", json=vm),
            await http.post("/vm/one/start"),
            await http.delete("/vm/one"),
            await http.post("/tokens", json=token),
            await http.post("/image/import", params={"name": "other"}, content=tick_disk(), headers=stream),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
        assert [token["name"] for token in (await http.get("/tokens")).json()["tokens"]] == []
        assert "cannot be written" in (await http.get("/health")).text
        assert (await http.post("/vm/two/stop", json={"force": True})).status_code == 200
        assert {vm["status"] for vm in (await http.get("/vm")).json()["vms"]} == {"stopped"}
        assert await agent.stop() == 0
        assert "bug" not in agent.said
        with pytest.raises(AgentDied, match="cannot be used: Read-only file system"):
            await agent.start()
        mend_disk(disk)
        await agent.start()
        async with RESTClient(agent.url) as client:
            await client.delete_vm("one")
            await client.start_vm("two")
            assert "cannot be written" not in await problems(client)
            await client.delete_vm("two", force=True)


async def test_a_database_that_another_process_holds_is_waited_for_then_named(node: AgentProcess) -> None:
    """The agent is the other process of this one."""
    token = {"name": "held", "role": "viewer"}
    with closing(sqlite3.connect(node.data_dir / "twinshare.db", isolation_level=None)) as db:
        async with httpx.AsyncClient(base_url=f"{node.url}/api", timeout=30) as http:
            db.execute("BEGIN IMMEDIATE")
            answer = await http.post("/tokens", json=token)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable"), answer.text
            assert "another process holds the database" in (await http.get("/health")).text
            assert (await http.get("/vm")).status_code == 200
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    assert (await http.post("/tokens", json=token)).status_code == 200

                nursery.start_soon(ask)
                await trio.sleep(0.5)  # it waits meanwhile; BUSY_TIMEOUT is longer
                db.execute("COMMIT")
            assert "another process holds the database" not in (await http.get("/health")).text
            assert (await http.delete("/tokens/held")).status_code == 200


async def test_a_damaged_database_is_named_and_repaired_under_a_running_vm(tmp_path: Path) -> None:
    async with started(tmp_path) as agent:
        async with RESTClient(agent.url) as client:
            vm = (await client.start_vm("one")).vm
        before = agent.agent_file
        await agent.kill()
        damage(agent.data_dir / "twinshare.db", "operations")
        with pytest.raises(AgentDied, match=r"is damaged.*twinshare repair"):
            await agent.start()
        command = [sys.executable, "-m", "twinshare", "repair", "--data-dir", str(agent.data_dir)]
        done = await trio.run_process(command, capture_stdout=True)
        assert b"lost: operations\n" in done.stdout
        await agent.start()
        assert agent.agent_file["peer_id"] == before["peer_id"]
        async with RESTClient(agent.url) as client:
            (found,) = await client.list_vms()
            assert (found.id, found.status, found.owner) == (vm.id, VmStatus.RUNNING, vm.owner)
            assert [image.name for image in await client.images().list_images()] == ["tick"]
            await client.delete_vm("one", force=True)
