"""The VMs of two nodes, each at an address of its own on both machines, as curl reaches them: agents as processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import trio

from tests.nodes.fleet import ask, fleet
from tests.nodes.test_guests_of_peers import blank
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root listens on port 80"),
]


async def curl(address: str) -> str:
    done = await trio.run_process(["curl", "-sS", "-m", "10", f"http://{address}/"], capture_stdout=True)
    return done.stdout.decode()


async def address_of(node: AgentProcess, path: str) -> str:
    with trio.fail_after(20):
        while not (found := (await ask(node, "GET", path))["ip"]):
            await trio.sleep(0.05)
    return str(found)


async def test_two_vms_on_two_nodes_answer_curl_from_both(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as (one, two):
        for node, name in ((one, "first"), (two, "second")):
            async with RESTClient(node.url) as client:
                await client.import_image("disk", blank(tmp_path))
                await client.create_vm(
                    name, "disk", memory=64, disk_size=1, cpu_cores=1, start=True, labels={"ports": "80"}
                )
        addresses = {
            (one, "first"): await address_of(one, "/api/vm/first"),
            (one, "second"): await address_of(one, "/api/remote/node-2/vm/second"),
            (two, "first"): await address_of(two, "/api/remote/node-1/vm/first"),
            (two, "second"): await address_of(two, "/api/vm/second"),
        }
        assert len(set(addresses.values())) == 4
        for (_, name), address in addresses.items():
            assert await curl(address) == f"{name}\n"
