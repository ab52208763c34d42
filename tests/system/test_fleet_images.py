"""An image travels between real agents, over real libp2p, and the death of whoever fetches it costs nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.nodes.fleet import ask, fleet
from twinshare.agent.images.contract_samples import with_boot_sector
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

pytestmark = pytest.mark.system
MIB = 1 << 20
SPEC = {"name": "web", "image": "big:v1", "cpu_cores": 1, "memory": 64, "disk_size": 1}


def raw(node: AgentProcess, digest: str) -> bytes:
    [found] = node.data_dir.rglob(f"{digest.partition(':')[2]}.raw")
    return found.read_bytes()


async def fetched(node: AgentProcess, least: int) -> None:
    """Until a fetch that is under way has brought so many bytes."""
    with trio.fail_after(60):
        while True:
            operations = (await ask(node, "GET", "/api/operations?state=running"))["operations"]
            if any(one["progress"]["unit"] == "bytes" and one["progress"]["done"] >= least for one in operations):
                return
            await trio.sleep(0.02)


async def test_a_vm_from_an_image_of_a_peer_though_its_node_is_killed(tmp_path: Path) -> None:
    disk = with_boot_sector(random.Random(5).randbytes(160 * MIB))
    async with fleet(tmp_path, 2) as (far, near):
        (tmp_path / "disk").write_bytes(disk)
        async with RESTClient(far.url) as client:
            given = await client.import_image("big:v1", tmp_path / "disk")
        since = trio.current_time()
        first = await ask(near, "POST", "/api/image/pull", {"image": "big:v1", "name": "first:v1"})
        print(f"{len(disk) / MIB / (trio.current_time() - since):.0f} MiB/s from a peer")
        assert first["digest"] == given.digest
        assert raw(near, given.digest) == disk
        await ask(near, "DELETE", "/api/image/first:v1")

        async with trio.open_nursery() as nursery:

            async def create() -> None:
                try:
                    await ask(near, "POST", "/api/vm", SPEC)
                except Exception:  # noqa: BLE001 - the node that was asked is killed
                    return

            nursery.start_soon(create)
            await fetched(near, 16 * MIB)
            await near.kill()
        [half] = near.data_dir.rglob("*.pull")
        assert half.stat().st_blocks * 512 >= 8 * MIB
        await near.start()
        with trio.fail_after(90):
            while (
                not (await ask(near, "GET", "/api/vm"))["vms"]
                or (await ask(near, "GET", "/api/operations?state=running"))["operations"]
            ):
                await trio.sleep(0.1)
        [vm] = (await ask(near, "GET", "/api/vm"))["vms"]
        assert (vm["name"], vm["status"]) == ("web", "stopped")
        image = await ask(near, "GET", "/api/image/big:v1")
        assert (image["digest"], image["used_by"]) == (given.digest, ["web"])
        assert raw(near, given.digest) == disk
        assert list(near.data_dir.rglob("*.pull")) == []
