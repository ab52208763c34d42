"""The image store on disk: what it keeps, refuses, survives and cleans up. qemu-img runs as the tests' own user."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import trio
import zstandard

from tests.images.stores import disk_store
from twinshare.agent.database import Database
from twinshare.agent.images.contract_samples import nobody, pieces, qcow2_disk, quiet, raw_disk, with_boot_sector
from twinshare.agent.images.index import ChunkIndex, index_bytes
from twinshare.agent.images.port import Origin
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import ImageDamaged, InsufficientResources, InvalidRequest, TwinshareError

MIB = 1 << 20


def random_disk(seed: int, size: int = 3 * MIB) -> bytes:
    source = random.Random(seed)
    return with_boot_sector(source.randbytes(MIB) + bytes(MIB // 2) + source.randbytes(5000)).ljust(size, b"\0")


def as_qcow2(disk: bytes, folder: Path, *options: str) -> bytes:
    raw, qcow2 = folder / "in.raw", folder / "in.qcow2"
    raw.write_bytes(disk)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, qcow2], check=True)
    return qcow2.read_bytes()


CHECKED = zstandard.ZstdCompressor(write_checksum=True)
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "two gzip members, padded": lambda data: gzip.compress(data[:99999]) + gzip.compress(data[99999:]) + bytes(512),
    "zstd": CHECKED.compress,
    "many zstd frames": lambda data: b"".join(
        CHECKED.compress(data[i : i + 70_000]) for i in range(0, len(data), 70_000)
    ),
    "xz": lzma.compress,
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("form", ["raw", "qcow2", "compressed qcow2"])
async def test_a_disk_is_kept_byte_by_byte_however_it_comes(tmp_path: Path, form: str, packing: str) -> None:
    disk = random_disk(1)
    options = ["-c"] if form.startswith("compressed") else []
    content = PACKINGS[packing](disk if form == "raw" else as_qcow2(disk, tmp_path, *options))
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("disk", pieces(content), report=quiet)
        base = store.base_path(image.digest)
        assert base.read_bytes() == disk
        assert image.digest == index_bytes(disk).digest
        assert base.stat().st_mode & 0o777 == 0o444
        assert base.stat().st_blocks * 512 == image.allocated < len(disk)
        index = tmp_path / "images/idx" / base.with_suffix(".idx").name
        assert ChunkIndex.decode(index.read_bytes()).digest == image.digest
        assert list((tmp_path / "images/partial").iterdir()) == []


@pytest.mark.parametrize("packing", [name for name in PACKINGS if name != "plain"])
async def test_broken_compression_is_refused(tmp_path: Path, packing: str) -> None:
    content = PACKINGS[packing](random_disk(2))
    middle = len(content) // 2
    async with disk_store(tmp_path / "images") as store:
        for damaged in (
            content[:middle],
            content[: middle - 600] + b"\xff\x00" * 300 + content[middle:],
            content + b"garbage",
        ):
            with pytest.raises(InvalidRequest, match="compression"):
                await store.add_image("disk", pieces(damaged), report=quiet)
        assert await store.list_images() == []
        assert list((tmp_path / "images/partial").iterdir()) == []


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lzma.compress])
async def test_a_bomb_stops_at_the_limit(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    async with disk_store(tmp_path / "images", max_size=64 * MIB) as store:
        with pytest.raises(InvalidRequest, match="at most"):
            await store.add_image("bomb", pieces(pack(bytes(65 * MIB))), report=quiet)


async def test_an_endless_body_stops_at_the_limit(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield with_boot_sector(b"x" * MIB)
            await trio.lowlevel.checkpoint()

    async with disk_store(tmp_path / "images", max_size=8 * MIB) as store:
        with pytest.raises(InvalidRequest, match="at most"):
            await store.add_image("endless", endless(), report=quiet)
    assert sent <= 12 * MIB


async def test_features_that_only_qemu_sees_are_refused(tmp_path: Path) -> None:
    """A table that is not where it may be: the header reads well, and only qemu-img looks further."""
    disk = bytearray(qcow2_disk(MIB))
    disk[40:48] = (12345).to_bytes(8, "big")
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(InvalidRequest, match="damaged") as caught:
            await store.add_image("bad", pieces(bytes(disk)), report=quiet)
        assert str(tmp_path) not in caught.value.message


async def test_a_qcow2_that_stands_for_too_much_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    """Every cluster of a terabyte points at one and the same cluster of data."""
    cluster, entries = 65536, 8192
    disk = bytearray(qcow2_disk(1 << 40))
    l1 = 3 * cluster
    l2, data = len(disk), len(disk) + cluster
    for entry in range((1 << 40) // (cluster * entries)):
        disk[l1 + entry * 8 : l1 + entry * 8 + 8] = l2.to_bytes(8, "big")
    disk += data.to_bytes(8, "big") * entries + b"x" * cluster
    async with disk_store(tmp_path / "images") as store:
        with pytest.raises(InsufficientResources, match="room"):
            await store.add_image("bomb", pieces(bytes(disk)), report=quiet)


async def test_images_are_there_after_a_restart(tmp_path: Path) -> None:
    async with disk_store(tmp_path / "images") as store:
        await store.add_image("one", pieces(raw_disk(1)), report=quiet, origin=Origin("here"))
        await store.add_image("ghcr.io/org/one:v1", pieces(raw_disk(1)), report=quiet)
        await store.add_image("two", pieces(raw_disk(2)), report=quiet)
        await store.add_image("two", pieces(raw_disk(3)), report=quiet, replace=True)
        before = await store.list_images()
    async with disk_store(tmp_path / "images") as store:
        assert await store.list_images() == before
        await store.remove_image("two", used_by=nobody)
        await store.remove_image("one", used_by=nobody)
    async with disk_store(tmp_path / "images") as store:
        assert len(await store.list_images()) == 2
        assert len(list((tmp_path / "images/raw").iterdir())) == 2


async def test_a_base_that_is_gone_or_cut_is_said_to_be_damaged(tmp_path: Path) -> None:
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("one", pieces(raw_disk(1)), report=quiet)
        os.truncate(store.base_path(image.digest), 4096)
        with pytest.raises(ImageDamaged):
            await store.make_overlay(image.digest, tmp_path / "disk.qcow2", MIB)
        store.base_path(image.digest).unlink()
        with pytest.raises(ImageDamaged):
            await store.make_overlay(image.digest, tmp_path / "disk.qcow2", MIB)
        await store.remove_image("one", used_by=nobody)


async def test_an_overlay_reads_as_its_base_and_takes_writes(tmp_path: Path) -> None:
    disk = random_disk(4)
    async with disk_store(tmp_path / "images") as store:
        image = await store.add_image("one", pieces(disk), report=quiet)
        overlay, flat = tmp_path / "disk.qcow2", tmp_path / "flat.raw"
        await store.make_overlay(image.digest, overlay, 10 * MIB)
        await trio.run_process(["qemu-io", "-f", "qcow2", "-c", "write -P 7 9M 64k", overlay], capture_stdout=True)
        await trio.run_process(["qemu-img", "check", "-q", "-f", "qcow2", overlay])
        await trio.run_process(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, flat])
        expected = bytearray(disk.ljust(10 * MIB, b"\0"))
        expected[9 * MIB : 9 * MIB + 65536] = b"\7" * 65536
        assert flat.read_bytes() == expected
        assert store.base_path(image.digest).read_bytes() == disk


def in_child(act: Callable[..., object], *arguments: object) -> int:
    """Run `act` in a forked child; its exit status, or minus the signal's number."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BaseException):
        act(*arguments)
        os._exit(0)
    os._exit(99)


def dying_at(step: int, act: Callable[[], Awaitable[object]]) -> int:
    """Run `act` in a child that dies right before its `step`-th sync, rename, removal or transaction."""

    def child() -> None:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1
            if steps > step:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(function: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                count()
                return function(*args, **kwargs)

            return call

        with ExitStack() as patches:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Database, "transact")):
                patches.enter_context(mock.patch.object(owner, name, counted(getattr(owner, name))))
            trio.run(act)

    return in_child(child)


def check_sound(root: Path, former: list[str]) -> set[str]:
    """After a restart every image is whole and every file belongs to one; the names there are."""

    async def look() -> set[str]:
        async with disk_store(root) as store:
            images = await store.list_images()
            digests = {image.digest for image in images}
            for digest in digests:
                disk = store.base_path(digest).read_bytes()
                assert index_bytes(disk).digest == digest
            for folder, suffixes in (("raw", [".raw"]), ("idx", [".idx", ".json"])):
                files = {path.name for path in (root / folder).iterdir()}
                assert files == {digest.partition(":")[2] + suffix for digest in digests for suffix in suffixes}
            assert list((root / "partial").iterdir()) == []
            assert {i.name for i in images} >= set(former)
            return {image.name for image in images}

    return trio.run(look)


async def add(root: Path, name: str, disk: bytes) -> None:
    async with disk_store(root) as store:
        await store.add_image(name, pieces(disk), report=quiet)


def crashed_at_each_step(
    scratch: Path, before: dict[str, bytes], act: Callable[[Path], Awaitable[None]]
) -> Iterator[Path]:
    """A store's folder for each step at which a process was killed in `act`; the last one lived to its end."""
    for step in range(100):
        root = scratch / str(step)
        for name, disk in before.items():
            trio.run(add, root, name, disk)
        status = dying_at(step, partial(act, root))
        yield root
        if status == 0:
            return
    raise AssertionError("it never came to its end")


def test_a_crash_at_any_step_of_an_import_leaves_all_or_nothing(tmp_path: Path) -> None:
    async def act(root: Path) -> None:
        await add(root, "new", random_disk(2))

    outcomes: list[bool] = []
    for root in crashed_at_each_step(tmp_path, {"former": raw_disk(1)}, act):
        outcomes.append("new" in check_sound(root, ["former"]))
        trio.run(act, root)
        assert check_sound(root, ["former"]) == {"former", "new"}
    assert len(outcomes) > 8
    assert outcomes == sorted(outcomes)


def test_a_crash_at_any_step_of_a_removal_leaves_all_or_nothing(tmp_path: Path) -> None:
    async def act(root: Path) -> None:
        async with disk_store(root) as store:
            await store.remove_image("old", used_by=nobody)

    before = {"former": raw_disk(1), "old": random_disk(2)}
    outcomes = ["old" in check_sound(root, ["former"]) for root in crashed_at_each_step(tmp_path, before, act)]
    assert len(outcomes) > 4
    assert outcomes == sorted(outcomes, reverse=True)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_no_room_for_a_write_is_said_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    """A bound on the size of files stands for a full disk: each larger bound fails at a later write."""
    disk = random_disk(3)
    content = disk if form == "raw" else as_qcow2(disk, tmp_path)
    root = tmp_path / "images"
    results = []
    for limit in [0, 4096, *range(65536, 4 * MIB, 300_000)]:

        async def fill(limit: int) -> None:
            async with disk_store(root) as store:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                try:
                    await store.add_image("new", pieces(content), report=quiet)
                except InsufficientResources:
                    os._exit(7)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        trio.run(disk_store_once, root)
        results.append(in_child(trio.run, fill, limit))
        if results[-1] == 7:
            files = sorted(path.name for path in root.rglob("*") if path.is_file())
            assert [name for name in files if not name.startswith("images.db")] == [], limit
            assert check_sound(root, []) == set()
    assert set(results) == {0, 7}, results
    assert results == sorted(results, reverse=True)


async def disk_store_once(root: Path) -> None:
    async with disk_store(root):
        pass


async def test_a_cancelled_import_leaves_nothing_at_any_moment(tmp_path: Path) -> None:
    async def slow(store: DiskImageStore) -> None:
        await store.add_image("slow", pieces(random_disk(5)), report=quiet)

    async with disk_store(tmp_path / "images") as store:
        for delay in range(12):
            with trio.move_on_after(delay * 0.002):
                await slow(store)
            assert list((tmp_path / "images/partial").iterdir()) == []
            names = {image.name for image in await store.list_images()}
            files = list((tmp_path / "images/raw").iterdir())
            assert len(files) == len(names)
            if names:
                await store.remove_image("slow", used_by=nobody)


async def test_names_are_kept_out_of_the_file_system(tmp_path: Path) -> None:
    async with disk_store(tmp_path / "images") as store:
        for ref in ("../../etc/x", "a/../../b", "/abs", "a:../b", ".", "..", "a/..", "~root", "x\0y"):
            with pytest.raises(TwinshareError):
                await store.add_image(ref, pieces(raw_disk(1)), report=quiet)
        await store.add_image("org/deep/name:v1", pieces(raw_disk(1)), report=quiet)
        files = [path.relative_to(tmp_path / "images") for path in (tmp_path / "images").rglob("*") if path.is_file()]
        assert not [path for path in files if "name" in str(path)]
