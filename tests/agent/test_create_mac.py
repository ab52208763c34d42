"""The MAC address of a VM: chosen by the node or given, shown, and unique on the node."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.agent.nodes import open_test_node, spec
from twinshare.protocols.errors import MacTaken, TwinshareError

MAC = "02:00:5e:10:00:01"


async def test_a_mac_is_given_shown_and_unique_on_the_node(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        chosen = await vms.create_vm(spec())
        assert chosen.mac is not None
        assert chosen.mac.startswith("52:54:00:")
        given = await vms.create_vm(spec("two", mac=MAC))
        assert given.mac == MAC
        assert (await vms.get_vm("two")).mac == MAC
        record = await node.vms.record(given.id)
        assert record.domain.mac == MAC
        for mac, owner in ((MAC, "two"), (chosen.mac, "one")):
            with pytest.raises(MacTaken, match=f"{mac} is that of VM '{owner}'") as refused:
                await vms.create_vm(spec("three", mac=mac))
            assert refused.value.details["vm"] == owner
        assert [vm.name for vm in await vms.list_vms()] == ["one", "two"]
        await vms.delete_vm("two")
        assert (await vms.create_vm(spec("three", mac=MAC))).mac == MAC


async def test_of_two_at_once_one_gets_the_mac(tmp_path: Path) -> None:
    refusals: list[TwinshareError] = []
    async with open_test_node(tmp_path) as (_, vms, _):

        async def create(name: str) -> None:
            try:
                await vms.create_vm(spec(name, mac=MAC))
            except MacTaken as error:
                refusals.append(error)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for name in ("one", "two", "three"):
                    nursery.start_soon(create, name)
        assert len(refusals) == 2
        assert len(await vms.list_vms()) == 1


@pytest.mark.parametrize(
    "mac",
    ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "fe:00:00:00:00:01", "52:54:00:12:34",
     "52-54-00-12-34-56", "52:54:00:AB:CD:EF", "52:54:00:12:34:56\n", "52:54:00:12:34:56,x=y"],
)  # fmt: skip
def test_what_no_network_card_can_have_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match="mac must be"):
        spec(mac=mac)
