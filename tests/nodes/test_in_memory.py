"""Whole nodes in one process, on the in-memory hypervisor and network: what a far operation promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from tests.agent.nodes import config, spec
from twinshare.agent.config import P2pConfig
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.node import Node
from twinshare.agent.open_node import open_node
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from twinshare.protocols.errors import (
    Forbidden,
    IdempotencyMismatch,
    PeerUnreachable,
    QuotaExceeded,
    TwinshareError,
    VmExists,
    VmNotFound,
    WrongState,
)
from twinshare.protocols.operation import Detached, OperationState
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods

TABLE = all_methods(SERVICES)


async def call(
    node: Node, name: str, /, peer: str | None = None, caller: Caller = LOCAL_ADMIN, **arguments: Any
) -> Any:
    return await node.call(caller, TABLE[name], arguments, peer)


def keyed(key: str, *, detach: bool = False) -> Caller:
    return Caller(principal="local", role=Role.ADMIN, idempotency_key=key, detach=detach)


async def eventually(condition: Any, seconds: float = 5) -> None:
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.01)


@asynccontextmanager
async def open_node_on(network: MemoryNetwork, folder: Path, name: str) -> AsyncIterator[Node]:
    made = config(folder / name)
    made = msgspec.structs.replace(
        made, node=msgspec.structs.replace(made.node, name=name), p2p=P2pConfig(enabled=True, dead_peer_timeout=2.0)
    )
    async with open_node(made, partial(open_memory_host, network, peer_timeout=2.0)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        yield node


async def join(joiner: Node, inviter: Node, role: Role = Role.ADMIN, limits: Limits | None = None) -> None:
    ticket = await call(inviter, "invite_peer", invite=InviteRequest(role=role, limits=limits))
    await call(joiner, "join_fleet", ticket=ticket.ticket)


@asynccontextmanager
async def open_fleet(
    folder: Path, *roles: Role, limits: Limits | None = None
) -> AsyncIterator[tuple[MemoryNetwork, list[Node]]]:
    """A founder, and a node of each role."""
    network = MemoryNetwork()
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node_on(network, folder, "node-0"))]
        for role in roles:
            nodes.append(await stack.enter_async_context(open_node_on(network, folder, f"node-{len(nodes)}")))
            await join(nodes[-1], nodes[0], role, limits)
        try:
            yield network, nodes
        except Exception as error:  # noqa: BLE001 - raised again below, not as the groups of all nurseries around it
            failure = error
    if failure is not None:
        raise failure


async def test_a_far_vm_is_worked_on_as_a_near_one(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (_, (a, b, c)):
        made = await call(a, "create_vm", "node-2", spec=spec("far"))
        assert (made.name, made.owner, made.node) == ("far", a.peer_id, "node-2")
        assert (await call(b, "start_vm", "node-2", vm=made.id)).status == "running"
        for wrong, error in (
            (call(a, "create_vm", "node-2", spec=spec("far")), VmExists),
            (call(a, "get_vm", "node-2", vm="none"), VmNotFound),
            (call(a, "delete_vm", "node-2", vm="far"), WrongState),
        ):
            with pytest.raises(error):
                await wrong
        rows = (await b.fleet_vms(LOCAL_ADMIN)).vms
        assert [(row.name, row.node, row.reachable) for row in rows] == [("far", "node-2", True)]
        await call(b, "delete_vm", "node-2", vm="far", force=True)
        assert await call(c, "list_vms") == []


async def test_a_retry_through_another_node_is_still_one_vm(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN, Role.ADMIN) as (_, (a, b, c)):
        made = await call(a, "create_vm", "node-2", keyed("once"), spec=spec("far"))
        again = await call(b, "create_vm", "node-2", keyed("once"), spec=spec("far"))
        assert again.id == made.id
        assert len(await call(c, "list_vms")) == 1
        with pytest.raises(IdempotencyMismatch):
            await call(b, "create_vm", "node-2", keyed("once"), spec=spec("other"))


async def test_a_mutation_goes_on_when_its_caller_hangs_up_and_is_found_by_its_key(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def create() -> None:
                    await call(a, "create_vm", "node-1", keyed("mine"), spec=spec("far"))

                nursery.start_soon(create)
                await eventually(lambda: begun(b))
                scope.cancel()

        async def there() -> bool:
            return [vm.name for vm in await call(b, "list_vms")] == ["far"]

        await eventually(there)
        [operation] = [op for op in await call(a, "list_operations", "node-1") if op.kind == "create_vm"]
        assert operation.idempotency_key == "mine"
        assert operation.principal == a.peer_id
        ended = await call(a, "wait_operation", "node-1", id=operation.id, timeout=5.0)
        assert ended.state is OperationState.DONE
        assert (await call(a, "create_vm", "node-1", keyed("mine"), spec=spec("far"))).name == "far"


async def begun(node: Node) -> bool:
    return any(op.kind == "create_vm" for op in await call(node, "list_operations"))


async def test_a_detached_far_call_gives_the_far_operation(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, _b)):
        with pytest.raises(Detached) as detached:
            await call(a, "create_vm", "node-1", keyed("later", detach=True), spec=spec("far"))
        operation = detached.value.operation
        assert (operation.kind, operation.node, operation.target) == ("create_vm", "node-1", "far")
        ended = await call(a, "wait_operation", "node-1", id=operation.id, timeout=5.0)
        assert ended.state is OperationState.DONE


async def test_operators_change_what_they_own_and_viewers_nothing(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR, Role.VIEWER) as (_, (founder, operator, viewer)):
        await call(founder, "create_vm", spec=spec("ours"))
        await call(operator, "create_vm", "node-0", spec=spec("theirs"))
        assert (await call(operator, "start_vm", "node-0", vm="theirs")).status == "running"
        for refused in (
            call(operator, "start_vm", "node-0", vm="ours"),
            call(viewer, "start_vm", "node-0", vm="theirs"),
            call(viewer, "create_vm", "node-0", spec=spec("x")),
            call(operator, "create_vm", "node-0", Caller(principal="token:v", role=Role.VIEWER), spec=spec("x")),
        ):
            with pytest.raises(Forbidden):
                await refused
        assert {vm.name for vm in await call(viewer, "list_vms", "node-0")} == {"ours", "theirs"}
        assert {vm.name: vm.status for vm in await call(founder, "list_vms")} == {
            "ours": "stopped",
            "theirs": "running",
        }


async def test_a_members_limits_hold_on_every_node(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR, limits=Limits(vms=1)) as (_, (_founder, operator)):
        await call(operator, "create_vm", "node-0", spec=spec("first"))
        with pytest.raises(QuotaExceeded):
            await call(operator, "create_vm", "node-0", spec=spec("second"))


@pytest.mark.parametrize("end", ["drop", "freeze"])
async def test_a_mutation_whose_answer_is_lost_is_done_once(tmp_path: Path, end: str) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (network, (a, b)):
        errors: list[TwinshareError] = []
        hypervisor = b.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        hypervisor.behaviour.delay = 0.5  # the answer must not be there before the line is cut

        async def create() -> None:
            try:
                await call(a, "create_vm", "node-1", keyed("k"), spec=spec("far"))
            except TwinshareError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await eventually(lambda: begun(b))
            network.drop(a.peer_id, b.peer_id) if end == "drop" else network.freeze(b.peer_id)
        [error] = errors
        assert isinstance(error, PeerUnreachable)
        assert error.details["idempotency_key"] == "k"
        network.heal()
        hypervisor.behaviour.delay = 0.0

        async def repeated() -> bool:
            try:
                return bool((await call(a, "create_vm", "node-1", keyed("k"), spec=spec("far"))).name == "far")
            except PeerUnreachable:
                return False

        await eventually(repeated)
        assert len(await call(b, "list_vms")) == 1


async def test_stopping_p2p_leaves_local_vms_working(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.ADMIN) as (_, (a, b)):
        await call(a, "stop_p2p")
        assert (await call(a, "create_vm", spec=spec("here"))).name == "here"
        assert a.health.report().p2p == "stopped"
        with pytest.raises(TwinshareError, match="P2P services are not running"):
            await call(a, "list_vms", "node-1")
        await call(a, "start_p2p")
        assert await call(a, "list_vms", "node-1") == []

        async def seen() -> bool:
            return [row.name for row in (await b.fleet_vms(LOCAL_ADMIN)).vms] == ["here"]

        await eventually(seen)
