"""A real agent whose disk is full, cannot be written, or whose database is held or damaged, seen through REST."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.guest.disks import tick_disk
from tests.mounts import break_disk, fill, mend_disk, mounted_disk, needs_mounts
from twinshare.agent.testing import AgentDied, AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import InsufficientResources

pytestmark = [pytest.mark.system, needs_mounts]


async def create(client: RESTClient, name: str, *, start: bool = False) -> None:
    await client.create_vm(name=name, image="tick", memory=64, disk_size=1, start=start)


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted_disk(tmp_path / "disk", 2048) as place:
        yield place


@asynccontextmanager
async def started(disk: Path) -> AsyncIterator[AgentProcess]:
    """An agent on the disk with the VM `one`; the test stops it."""
    agent = AgentProcess(disk / "node", ["--api", "127.0.0.1:0"], {"TWINSHARE_HYPERVISOR_RESERVE_DISK": "0"})
    agent.log = disk.with_name("agent.log")
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
