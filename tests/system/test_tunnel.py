"""A port of one node that leads to a real guest of another, over real libp2p."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio

from tests.guest.disks import tiny_disk
from tests.nodes.fleet import ask, fleet
from twinshare.api.rest_client import RESTClient

pytestmark = pytest.mark.system
SPEC = {"name": "web", "image": "tiny", "cpu_cores": 1, "memory": 128, "disk_size": 1, "start": True}


async def answers(http: httpx.AsyncClient, url: str, *, within: float) -> None:
    """Wait until the guest behind the port tells its name, `within` so many seconds."""
    with trio.fail_after(within):
        while True:
            try:
                assert "web" in (await http.get(url)).text
                return
            except httpx.TransportError:
                await trio.sleep(0.2)


async def test_a_far_guest_answers_http_here(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2, hypervisor=None) as (far, near):
        async with RESTClient(far.url) as client:
            await client.import_image("tiny", await tiny_disk())
        await ask(near, "POST", "/api/remote/node-1/vm", SPEC)
        place = "/api/remote/node-1/vm/web/port-forward"
        made = await ask(near, "POST", place, {"host_port": 0, "guest_port": 80})
        url = f"http://127.0.0.1:{made['host_port']}/"
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            await answers(http, url, within=90)

            async def again() -> None:
                assert "web" in (await http.get(url, headers={"connection": "close"})).text

            async with trio.open_nursery() as nursery:
                for _ in range(8):  # more at once than the guest's backlog takes are lost in it
                    nursery.start_soon(again)
        assert (await ask(near, "GET", place))["forwards"] == [made]
        assert (await ask(far, "GET", "/api/vm/web/port-forward"))["forwards"] == []
        await near.kill()
        await near.start()
        async with httpx.AsyncClient(timeout=20, trust_env=False) as http:
            await answers(http, url, within=30)
        await ask(near, "DELETE", f"{place}/{made['host_port']}")
        assert (await ask(near, "GET", place))["forwards"] == []
        await ask(far, "DELETE", "/api/vm/web", {"force": True})
