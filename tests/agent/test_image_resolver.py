"""A VM whose image is not here: fetched as part of its creation, once, and nothing is left when that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.nodes import images_of
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.images.port import Origin
from twinshare.agent.node import Node
from twinshare.protocols.errors import (
    ImageNotFound,
    InvalidRequest,
    OperationCancelled,
    RegistryFailed,
    TwinshareError,
    VmExists,
    WrongState,
)
from twinshare.protocols.image import Image
from twinshare.protocols.operation import Operation, OperationState
from twinshare.protocols.vm import VmStatus

from .nodes import open_test_node, spec
from .remote import Remote, install

REF = "registry.example/org/web:v1"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    remote = install(monkeypatch)
    remote.contents[REF] = raw_disk(7)
    return remote


async def creation(node: Node) -> Operation:
    [found] = [one for one in await node.operations.list() if one.kind == "create_vm"]
    return found


def nothing_left(node: Node, folder: Path) -> bool:
    free = node.health.capacity().in_flight
    return not list((folder / "vms").iterdir()) and not node.vms.resolver.reserved and not free.memory


async def test_the_image_is_fetched_with_progress(remote: Remote, tmp_path: Path) -> None:
    remote.close()
    async with open_test_node(tmp_path) as (node, vms, _), trio.open_nursery() as nursery:
        nursery.start_soon(vms.create_vm, spec(image=REF, start=True))
        await remote.begun.wait()
        assert (await vms.get_vm("one")).status is VmStatus.CREATING
        assert (await creation(node)).progress.message == "fetching"
        with pytest.raises(VmExists):
            await vms.create_vm(spec())
        assert [(vm.name, vm.node) for vm in await vms.list_vms()] == [("one", "here")]
        for refused in (vms.delete_vm, vms.stop_vm, vms.vm_log, vms.list_forwards):
            with pytest.raises(WrongState, match="is being created; wait for that, or cancel the operation"):
                await refused("one")
        remote.opened.set()
        with trio.fail_after(60):
            done = await node.operations.wait((await creation(node)).id, 5)
        assert (done.state, done.result.status, done.result.image) == (OperationState.DONE, VmStatus.RUNNING, REF)
        [image] = [one for one in await images_of(node).list_images() if one.registry != "local"]
        assert image.used_by == ["one"]
        await vms.create_vm(spec("two", image=REF))
        assert remote.pulls == 1, "what is here is not fetched again"


async def test_what_nobody_knows_is_refused_at_once(remote: Remote, tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        for ref in ("nope", "org/nope:v1", "blake3:" + "0" * 64):
            with pytest.raises(ImageNotFound):
                await vms.create_vm(spec(image=ref))
        with pytest.raises(InvalidRequest):
            await vms.create_vm(spec(image="../nope"))
        assert await node.operations.list() == []
        assert remote.pulls == 0


@pytest.mark.parametrize("failure", [RegistryFailed("it stalls"), ImageNotFound("it has no such tag")])
async def test_a_fetch_that_fails_leaves_nothing(failure: TwinshareError, remote: Remote, tmp_path: Path) -> None:
    remote.failure = failure
    async with open_test_node(tmp_path) as (node, vms, _):
        with pytest.raises(type(failure), match=failure.message):
            await vms.create_vm(spec(image=REF))
        assert nothing_left(node, tmp_path)
        remote.failure = None
        assert (await vms.create_vm(spec(image=REF))).name == "one"


async def test_a_disk_that_is_too_small_is_refused_after_the_fetch(remote: Remote, tmp_path: Path) -> None:
    remote.contents[REF] = raw_disk(8, (1 << 30) + 512)
    async with open_test_node(tmp_path) as (node, vms, _):
        with pytest.raises(InvalidRequest, match="at least 2 GiB"):
            await vms.create_vm(spec(image=REF, disk_size=1))
        assert nothing_left(node, tmp_path)
        assert (await vms.create_vm(spec(image=REF, disk_size=2))).disk_size == 2
        assert remote.pulls == 1


async def test_a_fetch_can_be_cancelled(remote: Remote, tmp_path: Path) -> None:
    remote.close()
    async with open_test_node(tmp_path) as (node, vms, _), trio.open_nursery() as nursery:

        async def create() -> None:
            with pytest.raises(OperationCancelled):
                await vms.create_vm(spec(image=REF))

        nursery.start_soon(create)
        await remote.begun.wait()
        await node.operations.cancel((await creation(node)).id)
        assert nothing_left(node, tmp_path)
        assert await vms.list_vms() == []


async def test_two_at_once_both_get_their_image(remote: Remote, tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        async with trio.open_nursery() as nursery:
            for name in ("one", "two", "three"):
                nursery.start_soon(vms.create_vm, spec(name, image=REF))
        assert [vm.name for vm in await vms.list_vms()] == ["one", "three", "two"]
        assert len(await images_of(node).list_images()) == 2


async def test_an_image_that_is_taken_away_meanwhile_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    """The window between the pull of an image and its reservation for a VM."""
    async with open_test_node(tmp_path) as (node, vms, _):
        resolver, images = node.vms.resolver, images_of(node)
        pull = resolver.exchange.pull_image

        async def pull_and_lose(ref: str, **more: Any) -> Image:
            image = await pull(ref, **more)
            if remote.pulls == 1:
                await images.prune_images(all=True)
            return image

        resolver.exchange.pull_image = pull_and_lose  # type: ignore[method-assign]  # a thief on the way
        made = await vms.create_vm(spec(image=REF))
        assert remote.pulls == 2
        assert (await images.get_image(REF)).used_by == [made.name]


async def test_a_node_that_stops_in_a_fetch_goes_on_with_it(remote: Remote, tmp_path: Path) -> None:
    remote.close()
    async with open_test_node(tmp_path, uri=f"fake://{tmp_path}/fake.json") as (node, vms, _):
        node.operations.close_timeout = 0.05
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vms.create_vm, spec(image=REF))
            await remote.begun.wait()
            nursery.cancel_scope.cancel()
    remote.opened.set()
    async with open_test_node(tmp_path, uri=f"fake://{tmp_path}/fake.json") as (node, vms, _):
        done = await node.operations.wait((await creation(node)).id, 5)
        assert done.state is OperationState.DONE
        assert [vm.name for vm in await vms.list_vms()] == ["one"]
        await node.images.add("other", pieces(raw_disk(9)), lambda _progress: None, Origin("test"))
