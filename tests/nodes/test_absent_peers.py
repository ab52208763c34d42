"""A list of the fleet names the peers that could not be asked, also after a restart, with the VMs they listed last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import TABLE, call, eventually, join, open_node_on
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.errors import VmNotFound
from twinshare.protocols.peer import FleetVms


async def listed(node: Node) -> FleetVms:
    return await node.fleet_vms(LOCAL_ADMIN)


async def test_an_absent_peer_is_named_with_its_vms_also_after_a_restart(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with open_node_on(network, tmp_path, "one") as one:
        async with open_node_on(network, tmp_path, "two") as two:
            await join(two, one)
            await call(two, "create_vm", spec=spec("far"))

            async def everybody_is_asked() -> bool:
                found = await listed(one)
                return [vm.name for vm in found.vms] == ["far"] and not found.unreachable

            await eventually(everybody_is_asked, 20)

        async def it_is_missed() -> bool:
            return [peer.name for peer in (await listed(one)).unreachable] == ["two"]

        await eventually(it_is_missed, 20)
    async with open_node_on(network, tmp_path, "one") as one:
        found = await listed(one)
        assert [(vm.name, vm.node, vm.reachable) for vm in found.vms] == [("far", "two", False)]
        [absent] = found.unreachable
        assert (absent.name, absent.vms, absent.reason) == ("two", 1, "it is offline")
        assert absent.observed_at is not None
        for ref, name in (("nosuch", "get_vm"), ("nosuch", "delete_vm"), ("nosuch", "list_forwards")):
            with pytest.raises(VmNotFound, match="'nosuch' not found; two could not be asked") as missing:
                await call(one, name, vm=ref)
            assert missing.value.details["not_asked"] == ["two"]
        await call(one, "stop_p2p")
        assert [peer.reason for peer in (await listed(one)).unreachable] == ["the P2P services of this node are off"]


async def test_the_list_of_a_peer_that_was_revoked_is_forgotten(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with open_node_on(network, tmp_path, "one") as one, open_node_on(network, tmp_path, "two") as two:
        await join(two, one)
        await call(two, "create_vm", spec=spec("far"))

        async def is_listed() -> bool:
            return [vm.name for vm in (await listed(one)).vms] == ["far"]

        await eventually(is_listed, 20)
        await one.call(LOCAL_ADMIN, TABLE["revoke_peer"], {"peer": two.peer_id})
        found = await listed(one)
        assert (found.vms, found.unreachable) == ([], [])
