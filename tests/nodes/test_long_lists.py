"""Lists that no frame can carry: they are read through a peer as they are here, of a node and of the fleet."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, eventually, open_fleet
from twinshare.agent.journal.store import MAX_LISTED_RESULT
from twinshare.agent.node import Node
from twinshare.agent.p2p import calls
from twinshare.agent.vm.reads import VmReads
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.frames import MAX_FRAME
from twinshare.protocols.vm import Vm, VmChange

LARGE = {f"key-{number}": "x" * 250 for number in range(29)}


def size_of(rows: object) -> int:
    return len(msgspec.msgpack.encode(rows))


async def test_a12_operations_of_one_caller_never_make_the_list_unreadable(tmp_path: Path) -> None:
    """Each keeps its VM as its result, with the labels that the VM had then."""
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        await call(b, "create_vm", a.peer_id, spec=spec("web", labels=LARGE))
        for number in range(140):
            await call(b, "update_vm", a.peer_id, vm="web", change=VmChange(labels=LARGE | {"n": str(number)}))
        here = await call(a, "list_operations")
        assert size_of(here) > MAX_FRAME
        assert [each.id for each in await call(b, "list_operations", a.peer_id)] == [each.id for each in here]


async def test_a_list_of_operations_leaves_large_results_to_each_operation(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        larger = {f"key-{number}": "x" * 250 for number in range(40)}
        await call(b, "create_vm", a.peer_id, spec=spec("web", labels=larger))
        [listed] = [each for each in await call(b, "list_operations", a.peer_id) if each.kind == "create_vm"]
        assert listed.result is None
        shown = await call(b, "get_operation", a.peer_id, id=listed.id)
        assert size_of(shown.result) > MAX_LISTED_RESULT
        assert shown.result["labels"] == larger


async def test_the_fleet_is_listed_whole_however_many_vms_a_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, most = 3000, 3000
    monkeypatch.setattr(calls, "MAX_ROWS", most)
    one: list[Vm] = []

    async def list_vms(reads: VmReads) -> list[Vm]:
        return [msgspec.structs.replace(vm, name=f"vm-{number}") for vm in one for number in range(count)]

    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        one.append(await call(b, "create_vm", spec=spec()))
        monkeypatch.setattr(VmReads, "list_vms", list_vms)
        names = [f"vm-{number}" for number in range(count)]
        found = await call(a, "list_vms", b.peer_id)
        assert [vm.name for vm in found] == names
        assert size_of(found) > MAX_FRAME
        await eventually(lambda: listed(a, 2 * count), 10)
        count += 1
        await eventually(lambda: named(a, f"more than {most} rows"), 10)
        assert len((await a.fleet_vms(LOCAL_ADMIN)).vms) == count + most


async def listed(node: Node, count: int) -> bool:
    found = await node.fleet_vms(LOCAL_ADMIN)
    return len(found.vms) == count and not found.unreachable


async def named(node: Node, reason: str) -> bool:
    return any(reason in peer.reason for peer in (await node.fleet_vms(LOCAL_ADMIN)).unreachable)
