"""Each operation is safe to repeat: done again after its last effect, as after a crash just then, it ends the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agent.lives import FORWARD, PORT, SPEC, STOPPED, Client, client_of, nodes, until_there
from twinshare.agent.image_operations import build_tiny
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.images.memory import MemoryImageExchange
from twinshare.agent.journal.active import ActiveOperation
from twinshare.agent.journal.operation import JournalledOperation
from twinshare.agent.node import Node
from twinshare.agent.operations import OPERATIONS
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.image import Image, Pruned, PullRequest, Pushed, PushRequest
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.vm import Forward, ForwardSpec, Vm, VmChange, VmStatus

Do = Callable[[JournalledOperation[Any], ActiveOperation], Awaitable[Any]]
REF = "registry.example/org/web:v1"


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """From now on each operation is done twice; the kinds that were."""
    kinds: set[str] = set()

    def twice(plain: Do) -> Do:
        async def do(operation: JournalledOperation[Any], active: ActiveOperation) -> Any:
            await plain(operation, active)
            active.is_recovered = True
            kinds.add(operation.kind)
            return await plain(operation, active)

        return do

    for kind in OPERATIONS.values():
        monkeypatch.setattr(kind, "do", twice(kind.do))
    return kinds


class Exchange(MemoryImageExchange):
    """A registry that takes what is pushed."""

    async def push_image(self, ref: str, target: str, **options: Any) -> Pushed:
        return Pushed(image=await self._store.get_image(ref), target=target, manifest="sha256:00")


async def _build_tiny(path: Path, *_: Any) -> Path:
    disk = path / "tiny.raw"
    disk.write_bytes(raw_disk(9))
    return disk


async def _with_peer(node: Node, there: Node) -> Client:
    client, far = client_of(node, ""), client_of(there, "")
    for one in (node, there):
        await one.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
    await far.vms.create_vm(msgspec.structs.replace(SPEC, name="far"))
    await far.peers.join_fleet((await client.peers.invite_peer(InviteRequest(role=Role.ADMIN))).ticket)
    await until_there(client)
    return client


async def _vm(ask: Awaitable[Vm], status: VmStatus) -> None:
    assert (await ask).status is status


async def test_every_operation_is_safe_to_repeat(
    tmp_path: Path, repeated: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_tiny, "build_tiny", _build_tiny)
    async with nodes(tmp_path, with_peer=True) as (node, there):
        client = await _with_peer(node, there)
        vms, images = client.vms, client.images
        exchange = Exchange(node.images.store)  # type: ignore[arg-type]  # it only adds to it
        node.images.exchange = node.vms.resolver.exchange = exchange
        exchange.publish(REF, raw_disk(7))

        await _vm(vms.create_vm(STOPPED), VmStatus.STOPPED)
        await _vm(vms.start_vm("one"), VmStatus.RUNNING)
        await _vm(vms.pause_vm("one"), VmStatus.PAUSED)
        await _vm(vms.resume_vm("one"), VmStatus.RUNNING)
        await _vm(vms.restart_vm("one", force=True), VmStatus.RUNNING)
        assert (await vms.update_vm("one", VmChange(labels={"a": "b"}))).labels == {"a": "b"}
        forward: Forward = await vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80))
        assert [one.host_port for one in await vms.list_forwards("one")] == [forward.host_port]
        await vms.remove_forward("one", forward.host_port)
        assert await vms.list_forwards("one") == []
        await _vm(vms.stop_vm("one", force=True), VmStatus.STOPPED)

        assert (await images.capture_image("one", "copy")).name == "copy"
        assert (await images.remove_image("copy")).name == "copy"
        assert (await images.pull_image(PullRequest(image=REF))).name == "org/web"
        assert (await images.push_image(PushRequest(image=REF, target="registry.example/org/web:v2"))).target
        assert (await images.build_tiny()).name == "tiny"
        assert (await images.fsck_images()).findings == []
        await _vm(vms.delete_vm("one"), VmStatus.STOPPED)
        assert await vms.list_vms() == []
        pruned: Pruned = await images.prune_images(all=True)
        assert sorted(image.name for image in pruned.images) == ["disk", "org/web", "tiny"]
        assert pruned.freed > 0
        left: list[Image] = await images.list_images()
        assert left == []

        await client.far.add_forward("far", FORWARD)
        assert [one.active for one in await client.far.list_forwards("far")] == [True]
        await client.far.remove_forward("far", PORT)
        assert await client.far.list_forwards("far") == []
    assert repeated == set(OPERATIONS)
