"""Images and the VMs that stand on them: captured, pruned, never taken away from under anybody."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from tests.agent.nodes import images_of
from tests.images.stores import run_tool
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.images.memory import MemoryImageExchange
from twinshare.agent.images.port import Origin
from twinshare.agent.node import Node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import (
    Forbidden,
    ImageDamaged,
    ImageExists,
    ImageNotFound,
    InvalidRequest,
    VmNotFound,
    WrongState,
)
from twinshare.protocols.image import Image, PullRequest, PushRequest

from .nodes import open_test_node, spec

GIB = 1 << 30


async def write_as_a_guest(disk: Path, command: str) -> None:
    done = await run_tool(["qemu-io", "-f", "qcow2", "-c", command, str(disk)], timeout=30)
    assert done.returncode == 0, done.stderr


async def content(node: Node, image: Image) -> Path:
    return node.backends.vms.parent / "images" / "raw" / f"{image.digest.partition(':')[2]}.raw"


async def test_an_image_is_what_the_guest_saw(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        made = await vms.create_vm(spec())
        disk = tmp_path / "vms" / made.id / "disk.qcow2"
        await write_as_a_guest(disk, "write -P 0x5a 12k 3k")
        await write_as_a_guest(disk, "write -P 0xa5 900M 1M")
        image = await images_of(node).capture_image("one", "made:v1")
        assert (image.name, image.tag, image.size, image.source) == ("made", "v1", GIB, "VM one")
        await write_as_a_guest(disk, "write -P 0 0 1M")
        found = await content(node, image)
        expected = bytearray(raw_disk(1))
        expected[12 << 10 : 15 << 10] = b"\x5a" * (3 << 10)
        with found.open("rb") as file:
            assert file.read(len(expected)) == expected
            file.seek(900 << 20)
            assert file.read(1 << 20) == b"\xa5" * (1 << 20)
        assert found.stat().st_blocks * 512 < 4 << 20, "holes stay holes"
        second = await vms.create_vm(spec("two", image="made:v1"))
        assert second.disk_size == 1
        assert (await images_of(node).get_image("made:v1")).used_by == ["two"]


async def test_a_disk_that_was_moved_with_libvirt_is_the_one_captured(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec())
        disk = tmp_path / "vms" / made.id / "disk.qcow2"
        copied = disk.with_name("copied.qcow2")
        shutil.copy(disk, copied)
        await write_as_a_guest(copied, "write -P 0x5a 12k 3k")
        hypervisor.move_disk(made.id, copied)
        image = await images_of(node).capture_image("one", "made")
        found = await content(node, image)
        assert found.read_bytes()[12 << 10 : 15 << 10] == b"\x5a" * (3 << 10)
        snapshot = disk.with_name("disk.snapshot")
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(copied), "-F", "qcow2", str(snapshot)]
        assert (await run_tool(command, timeout=30)).returncode == 0
        hypervisor.move_disk(made.id, snapshot)
        await write_as_a_guest(snapshot, "write -P 0x6b 20k 2k")
        found = await content(node, await images_of(node).capture_image("one", "behind"))
        assert found.read_bytes()[12 << 10 : 15 << 10] == b"\x5a" * (3 << 10)
        assert found.read_bytes()[20 << 10 : 22 << 10] == b"\x6b" * (2 << 10)


@pytest.mark.parametrize("chain", ["elsewhere", "round", "nowhere", "another base"])
async def test_overlays_that_do_not_lead_to_the_image_are_not_captured(tmp_path: Path, chain: str) -> None:
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        made = await vms.create_vm(spec())
        disk = tmp_path / "vms" / made.id / "disk.qcow2"
        active, outside = disk.with_name("disk.active"), tmp_path / "outside.qcow2"
        shutil.copy(disk, outside)
        backing = {"elsewhere": outside, "nowhere": disk.with_name("gone")}.get(chain, disk)
        if below := {"another base": outside, "round": active}.get(chain):
            command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(disk)]
            assert (await run_tool(command, timeout=30)).returncode == 0
        options = ["-f", "qcow2", "-u", "-b", str(backing), "-F", "qcow2"]
        command = ["qemu-img", "create", "-q", *options, str(active), f"{made.disk_size}G"]
        assert (await run_tool(command, timeout=30)).returncode == 0
        hypervisor.move_disk(made.id, active)
        with pytest.raises(WrongState):
            await images_of(node).capture_image("one", "other")


async def test_what_cannot_be_captured(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        images = images_of(node)
        with pytest.raises(ImageExists):
            await images.capture_image("one", "disk")
        with pytest.raises(InvalidRequest):
            await images.capture_image("one", "../x")
        with pytest.raises(VmNotFound):
            await images.capture_image("two", "x")
        other = Caller(principal="token:other", role=Role.OPERATOR)
        with pytest.raises(Forbidden):
            await images_of(node, other).capture_image("one", "x")
        assert [image.name for image in await images.list_images()] == ["disk"]


async def test_a_vm_that_runs_goes_on(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        made = await vms.create_vm(spec())
        disk = tmp_path / "vms" / made.id / "disk.qcow2"
        await write_as_a_guest(disk, "write -P 0x5a 12k 3k")
        await vms.start_vm("one")
        images = images_of(node)
        running = await images.capture_image("one", "running")
        assert (await vms.get_vm("one")).status == "running"
        await vms.stop_vm("one", force=True)
        assert (await images.capture_image("one", "stopped")).digest == running.digest


async def test_a_vm_that_stops_meanwhile_is_no_image(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        tool = node.images.store._run_tool  # type: ignore[attr-defined]  # the store on disk's own

        async def broken(argv: list[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
            await vms.stop_vm("one", force=True)
            return subprocess.CompletedProcess(argv, 1, b"", b"qemu-img: error while reading: Input/output error")

        node.images.store._run_tool = broken  # type: ignore[attr-defined]  # as above
        with pytest.raises(WrongState, match="stopped while its disk was read"):
            await images_of(node).capture_image("one", "x")
        node.images.store._run_tool = tool  # type: ignore[attr-defined]  # as above
        assert [image.name for image in await images_of(node).list_images()] == ["disk"]


async def test_prune_takes_nothing_from_under_a_vm(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        images = images_of(node)
        await vms.create_vm(spec())
        before = (await images.get_image("disk")).digest
        for seed in (2, 3, 4):
            await node.images.add("free", pieces(raw_disk(seed)), lambda _progress: None, Origin("test"), replace=True)
        would = await images.prune_images(dry_run=True)
        assert (len(would.images), would.dry_run, would.freed > 0) == (2, True, True)
        assert len(await images.list_images()) == 4
        gone = await images.prune_images()
        assert {image.digest for image in gone.images} == {image.digest for image in would.images}
        assert gone.freed == would.freed
        assert [image.name for image in await images.list_images()] == ["disk", "free"]
        assert [image.name for image in (await images.prune_images(all=True)).images] == ["free"]
        assert (await images.get_image("disk")).digest == before
        await vms.delete_vm("one", delete_disk=False)
        assert (await images.prune_images(all=True)).images == [], "a disk that was kept stands on it still"
        with pytest.raises(ImageNotFound):
            await images.get_image("free")


async def test_a_capture_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        entered, go_on = trio.Event(), trio.Event()
        store = node.images.store

        async def slow(argv: list[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
            entered.set()
            await go_on.wait()
            return await run_tool(argv, timeout=timeout)

        store._run_tool = slow  # type: ignore[attr-defined]  # the store on disk's own
        async with trio.open_nursery() as nursery:

            async def capture() -> None:
                with pytest.raises(Exception, match="cancelled"):
                    await images_of(node).capture_image("one", "made")

            nursery.start_soon(capture)
            await entered.wait()
            [operation] = [one for one in await node.operations.list() if one.kind == "capture_image"]
            await node.operations.cancel(operation.id)
        assert [image.name for image in await images_of(node).list_images()] == ["disk"]
        assert list((tmp_path / "images" / "partial").iterdir()) == []
        assert (await vms.start_vm("one")).status == "running"


async def test_a_pull_is_an_operation_with_progress_and_an_event(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        images = images_of(node)
        exchange = MemoryImageExchange(node.images.store)  # type: ignore[arg-type]  # it only adds to it
        node.images.exchange = node.vms.resolver.exchange = exchange
        exchange.publish("registry.example/org/web:v1", raw_disk(7))
        async with node.events.subscribe(None) as events:
            got = await images.pull_image(PullRequest(image="registry.example/org/web:v1"))
            assert (got.registry, got.name, got.tag) == ("registry.example", "org/web", "v1")
            seen: set[str] = set()
            with trio.fail_after(60):
                while not {"image.added", "op.done"} <= seen:
                    seen.add((await events.receive()).type)
        (operation,) = [op for op in await node.operations.list(None) if op.kind == "pull_image"]
        assert operation.target == "registry.example/org/web:v1"
        assert isinstance(operation.result, Image | dict)
        with pytest.raises(ImageNotFound):
            await images.pull_image(PullRequest(image="registry.example/none"))
        assert await images.list_catalogue() == []
        exchange.publish("short", raw_disk(8))
        assert [entry.name for entry in await images.list_catalogue()] == ["short"]


async def test_what_a_push_needs(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, _, _):
        images = images_of(node)
        with pytest.raises(InvalidRequest, match="names no registry"):
            await images.push_image(PushRequest(image="disk", target="mine"))
        with pytest.raises(ImageNotFound):
            await images.push_image(PushRequest(image="absent", target="registry.example/x"))


async def test_a_damaged_image_names_its_vms_which_run_on_and_no_new_one_starts_from_it(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec(start=True))
        images = images_of(node)
        image = await images.get_image("disk")
        assert (await images.fsck_images()).findings == []
        path = await content(node, image)
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"rot")
        path.chmod(0o444)
        [found] = (await images.fsck_images()).findings
        assert (found.names, found.vms, found.mended) == (["disk:latest"], ["one"], False)
        assert (await vms.get_vm("one")).status == "running"
        with pytest.raises(ImageDamaged):
            await vms.create_vm(spec("two"))
        with pytest.raises(ImageDamaged):
            await images.push_image(PushRequest(image="disk", target="registry.example/disk:v1"))
        assert any("disk:latest" in problem for problem in node.health.report().problems)
        viewer = Caller(principal="token:eye", role=Role.VIEWER)
        with pytest.raises(Forbidden):
            await node.call(viewer, node.dispatcher.table["fsck_images"], {})
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        await vms.create_vm(spec("two", start=True))
        assert node.health.report().problems == []


async def test_the_identity_of_a_disk_without_a_file_system_cannot_be_reset(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        with pytest.raises(InvalidRequest, match="no ext2") as refused:
            await images_of(node).capture_image("one", "made", reset_identity=True)
        assert refused.value.details == {"path": "reset_identity"}
        assert [image.name for image in await images_of(node).list_images()] == ["disk"]
