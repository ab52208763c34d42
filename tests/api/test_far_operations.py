"""A far mutation that nobody waits for: its progress is seen through the node that was asked."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.api.served import SPEC, served_in_a_fleet
from twinshare.agent.hypervisor.memory import MemoryHypervisor


async def test_a_far_operation_shows_how_far_it_is(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far):
        slow = far.vms.hypervisor
        assert isinstance(slow, MemoryHypervisor)
        slow.behaviour.delay = 0.3
        headers = {"prefer": "respond-async", "idempotency-key": "k"}
        begun = await api.client.post("/api/remote/far/vm", json={**SPEC, "start": True}, headers=headers)
        assert begun.status_code == 202
        where, id = begun.headers["location"], begun.json()["id"]
        assert where == f"/api/remote/far/operations/{id}"
        seen = []
        with trio.fail_after(60):
            while (operation := await api.get(where))["state"] in {"pending", "running"}:
                seen.append(operation["progress"])
                waited = await api.get(f"{where}/wait?timeout=0.02")
                assert waited["id"] == id
        assert (operation["state"], operation["node"], operation["idempotency_key"]) == ("done", "far", "k")
        assert operation["result"]["status"] == "running"
        steps = [progress["done"] for progress in seen]
        assert sorted(steps) == steps
        assert len(set(steps)) >= 2, "it was seen on its way"
        listed = (await api.get("/api/remote/far/operations"))["operations"]
        assert id in [one["id"] for one in listed]
        assert (await api.client.get(f"/api/operations/{id}")).status_code == 404, "it is the owner's"
