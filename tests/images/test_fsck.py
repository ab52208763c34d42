"""`image fsck`: all but the disks is made anew from them, and a damaged disk is named and given to nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.images.stores import disk_store
from tests.images.test_store import dying_at
from twinshare.agent.images.contract_samples import nobody, pieces, quiet, raw_disk, with_boot_sector
from twinshare.agent.images.index import ChunkIndex, index_bytes
from twinshare.agent.images.partial import Partial
from twinshare.agent.images.port import ImportRequest, Origin
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import ImageDamaged
from twinshare.protocols.image import Fault, ImageCheck
from twinshare.protocols.operation import Progress
from twinshare.protocols.reference import parse_reference

NAMES = ["one:latest", "ghcr.io/org/two:v2", "three:latest"]


async def fsck(store: DiskImageStore, *, healthy: bool = False) -> ImageCheck:
    """A check, and a second one, which has nothing more to mend."""
    checked = await store.fsck_images(used_by=nobody, report=quiet)
    again = await store.fsck_images(used_by=nobody, report=quiet)
    assert [one for one in again.findings if one.mended] == []
    assert again.findings == [one for one in checked.findings if not one.mended]
    assert (checked.findings == []) is healthy
    return checked


async def names(store: DiskImageStore) -> dict[str, str]:
    listed = await store.list_images()
    return {
        f"{'' if one.registry == 'local' else one.registry + '/'}{one.name}:{one.tag}": one.digest for one in listed
    }


@asynccontextmanager
async def filled(root: Path) -> AsyncIterator[DiskImageStore]:
    async with disk_store(root) as store:
        for seed, name in enumerate(NAMES):
            origin = Origin("test", f"sha256:{seed}" * 3, {"user": "me"})
            wanted_image = ImportRequest(parse_reference(name), origin, quiet)
            await store.add_content(pieces(raw_disk(seed)), wanted_image, replace=False)
        yield store


async def test_what_is_whole_stays_as_it_is(tmp_path: Path) -> None:
    heard: list[Progress] = []
    async with filled(tmp_path) as store:
        before = await store.list_images()
        files = times(tmp_path)
        checked = await fsck(store, healthy=True)
        assert checked.images == 3
        assert checked.bytes == sum(index_bytes(raw_disk(seed)).data_size for seed in range(3))
        await store.fsck_images(used_by=nobody, report=heard.append)
        assert heard[-1].done == heard[-1].total == checked.bytes
        assert await store.list_images() == before
        assert times(tmp_path) == files


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if "images.db" not in path.name}


def no_database(root: Path) -> None:
    for path in root.glob("images.db*"):
        path.unlink()


def garbage(root: Path) -> None:
    no_database(root)
    (root / "images.db").write_bytes(b"no database " * 1000)


def torn(root: Path) -> None:
    """Pages in the middle are lost; the header is as it was."""
    for path in root.glob("images.db-*"):
        path.unlink()
    content = bytearray((root / "images.db").read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    (root / "images.db").write_bytes(content)


@pytest.mark.parametrize("lose", [no_database, garbage, torn])
async def test_a_lost_database_is_made_again(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    async with filled(tmp_path) as store:
        before = await store.list_images()
    lose(tmp_path)
    async with disk_store(tmp_path) as store:
        assert await store.list_images() == []
        assert "image fsck" in store.problems[0]
        checked = await fsck(store)
        assert [one.fault for one in checked.findings] == [Fault.RESTORED] * 3
        assert store.problems == []
    async with disk_store(tmp_path) as store:
        assert sorted(map(str, await store.list_images())) == sorted(map(str, before)), "and it lasts"


async def test_a_name_given_anew_is_not_taken_back(tmp_path: Path) -> None:
    """After the loss, before the check: `one` is another image by then."""
    async with filled(tmp_path):
        pass
    no_database(tmp_path)
    async with disk_store(tmp_path) as store:
        other = await store.add_image("one", pieces(raw_disk(9)), report=quiet)
        await fsck(store)
        assert (await names(store))["one:latest"] == other.digest
        assert index_bytes(raw_disk(0)).digest in {image.digest for image in await store.list_images()}


async def test_without_cards_the_disks_come_back_without_names(tmp_path: Path) -> None:
    async with filled(tmp_path):
        pass
    no_database(tmp_path)
    for path in (tmp_path / "idx").iterdir():
        path.unlink()
    async with disk_store(tmp_path) as store:
        checked = await fsck(store)
        assert {one.fault for one in checked.findings} == {Fault.RESTORED, Fault.INDEX}
        assert {image.digest for image in await store.list_images()} == {
            index_bytes(raw_disk(seed)).digest for seed in range(3)
        }
        assert {image.name for image in await store.list_images()} == {""}


async def test_an_index_that_is_lost_or_wrong_is_made_again(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        first, second, third = (store.repository.index_path(digest) for digest in store.repository.tags.disks)
        right = [path.read_bytes() for path in (first, second, third)]
        first.unlink()
        second.write_bytes(right[0])
        third.write_bytes(right[2][:-1])
        checked = await fsck(store)
        assert [one.fault for one in checked.findings] == [Fault.INDEX] * 3
        assert [path.read_bytes() for path in (first, second, third)] == right


async def test_permissions_are_set_right(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        [first, second, _] = store.repository.tags.disks
        store.base_path(first).chmod(0o666)
        store.base_path(second).chmod(0)
        (tmp_path / "idx").chmod(0o777)
        checked = await fsck(store)
        assert [one.fault for one in checked.findings] == [Fault.PERMISSIONS] * 3
        assert {store.base_path(one).stat().st_mode & 0o777 for one in (first, second)} == {0o444}
        assert (tmp_path / "idx").stat().st_mode & 0o777 == 0o700


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    change(path, bytes(content))


def into_a_hole(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] = 1
    change(path, bytes(content))


def cut(path: Path) -> None:
    change(path, path.read_bytes()[:-4096])


def longer(path: Path) -> None:
    change(path, path.read_bytes() + bytes(4096))


def change(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


HARM: dict[str, tuple[Callable[[Path], None], Fault]] = {
    "a flipped bit": (flip, Fault.DAMAGED),
    "a byte in a hole": (into_a_hole, Fault.DAMAGED),
    "cut short": (cut, Fault.CUT_SHORT),
    "longer": (longer, Fault.DAMAGED),
    "gone": (Path.unlink, Fault.MISSING),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("lost", [False, True])
async def test_a_damaged_disk_is_given_to_nobody_until_it_is_taken_in_anew(
    tmp_path: Path, harm: str, *, lost: bool
) -> None:
    damage, fault = HARM[harm]
    root = tmp_path / "images"
    async with filled(root) as store:
        digest = (await store.get_image("one")).digest
    damage(store.base_path(digest))
    left = store.base_path(digest).read_bytes() if harm != "gone" else None
    if lost and left is not None:
        no_database(root)
    async with disk_store(root) as store:
        checked = await store.fsck_images(used_by=lambda one: ["web"] if one == digest else [], report=quiet)
        [found] = [one for one in checked.findings if not one.mended]
        assert (found.fault, found.digest, found.names, found.vms) == (fault, digest, ["one:latest"], ["web"])
        assert "one:latest" in found.message
        assert "web" in found.message
        assert str(tmp_path) not in found.message
    async with disk_store(root) as store:
        assert (await store.get_image("one")).damaged, "it is known after a restart"
        assert "one:latest" in store.problems[0]
        with pytest.raises(ImageDamaged, match="anew"):
            await store.make_overlay(digest, tmp_path / "disk.qcow2", 1 << 30)
        assert (store.base_path(digest).read_bytes() if left is not None else None) == left, "VMs may stand on it"
        image = await store.add_image("one", pieces(raw_disk(0)), report=quiet)
        assert (image.digest, image.damaged) == (digest, False)
        assert store.base_path(digest).read_bytes() == raw_disk(0)
        await store.make_overlay(digest, tmp_path / "disk.qcow2", 1 << 30)
        assert (await fsck(store, healthy=True)).images == 3
        assert store.problems == []


async def test_anew_by_chunks_only_what_is_damaged_is_fetched(tmp_path: Path) -> None:
    disk = with_boot_sector(os.urandom(3 << 20))
    async with disk_store(tmp_path) as store:
        image = await store.add_image("one", pieces(disk), report=quiet)
        flip(store.base_path(image.digest))
        await store.fsck_images(used_by=nobody, report=quiet)
        fetched = 0

        async def fetch(partial: Partial) -> None:
            nonlocal fetched
            for _, (offset, length, digest) in list(partial.gaps.wanted()):
                fetched += length
                partial.fill([(digest, disk[offset : offset + length])])

        name = parse_reference("one")
        await store.add_chunks(index_bytes(disk), fetch, ImportRequest(name, Origin("test"), quiet))
        assert 0 < fetched <= 256 * 1024
        assert store.base_path(image.digest).read_bytes() == disk
        assert not (await store.get_image("one")).damaged


async def test_a_damaged_image_can_be_removed(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        digest = (await store.get_image("one")).digest
        flip(store.base_path(digest))
        await store.fsck_images(used_by=nobody, report=quiet)
        await store.remove_image("one", used_by=nobody)
        assert not store.base_path(digest).exists()
        await fsck(store, healthy=True)


async def test_a_disk_that_was_mended_by_hand_is_whole_again(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        path = store.base_path((await store.get_image("one")).digest)
        flip(path)
        await store.fsck_images(used_by=nobody, report=quiet)
        change(path, raw_disk(0))
        assert [one.fault for one in (await fsck(store)).findings] == [Fault.HEALED]
        assert not (await store.get_image("one")).damaged


async def test_left_files_go_and_foreign_ones_are_named(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        left = [tmp_path / "partial" / "0badcafe.raw", tmp_path / "idx" / f".{'a' * 64}.idx.new"]
        left += [tmp_path / "idx" / f"{'b' * 64}.idx", tmp_path / "raw" / ".new"]
        half, foreign = tmp_path / "partial" / f"{'c' * 64}.pull", tmp_path / "raw" / "holiday.jpg"
        for path in (*left, half, foreign):
            path.write_bytes(b"x")
        checked = await store.fsck_images(used_by=nobody, report=quiet)
        assert sorted(one.fault for one in checked.findings) == [Fault.STRAY] + [Fault.TEMPORARY] * 4
        assert not any(path.exists() for path in left)
        assert half.exists(), "a pull may take it up again"
        assert foreign.exists()


async def test_scratch_files_at_work_are_left_alone(tmp_path: Path) -> None:
    begun, go_on = trio.Event(), trio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield raw_disk(7)[:600_000]
        yield b""
        begun.set()
        await go_on.wait()
        yield raw_disk(7)[600_000:]

    async with disk_store(tmp_path) as store, trio.open_nursery() as nursery:

        async def add() -> None:
            await store.add_image("slow", slow(), report=quiet)

        nursery.start_soon(add)
        await begun.wait()
        await fsck(store, healthy=True)
        go_on.set()
    assert store.base_path(index_bytes(raw_disk(7)).digest).read_bytes() == raw_disk(7)


async def test_an_image_removed_while_it_is_read_is_no_damage(tmp_path: Path) -> None:
    async with filled(tmp_path) as store:
        seen: list[Progress] = []

        def remove(progress: Progress) -> None:
            seen.append(progress)
            if len(seen) == 1:
                store.base_path(next(iter(store.repository.tags.disks))).unlink()
                nursery.start_soon(removal)

        async def removal() -> None:
            await store.remove_image("one", used_by=nobody)

        async with trio.open_nursery() as nursery:
            checked = await store.fsck_images(used_by=nobody, report=remove)
        assert [one.fault for one in checked.findings if one.fault is not Fault.MISSING] == []
        assert set(await names(store)) == set(NAMES[1:])


def test_a_check_that_is_killed_at_any_step_is_done_by_the_next(tmp_path: Path) -> None:
    """SIGKILL right before each sync, rename, removal and transaction of a check with everything to do."""
    steps = 0
    while True:
        root = tmp_path / str(steps)
        before, damaged = trio.run(harmed, root)

        async def check(root: Path = root) -> None:
            async with disk_store(root) as store:
                await store.fsck_images(used_by=nobody, report=quiet)

        status = dying_at(steps, check)
        trio.run(whole_after_a_check, root, before, damaged)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        steps += 1
    assert steps > 10


async def harmed(root: Path) -> tuple[dict[str, str], str]:
    """A store without a list, with a damaged disk, a lost index and a left file; its names, and the damaged digest."""
    async with filled(root) as store:
        before, damaged = await names(store), (await store.get_image("three")).digest
        flip(store.base_path(damaged))
        store.repository.index_path((await store.get_image("one")).digest).unlink()
    no_database(root)
    (root / "idx" / f"{'b' * 64}.idx").write_bytes(b"x")
    return before, damaged


async def whole_after_a_check(root: Path, before: dict[str, str], damaged: str) -> None:
    async with disk_store(root) as store:
        await store.fsck_images(used_by=nobody, report=quiet)
        assert await names(store) == before
        assert [image.digest for image in await store.list_images() if image.damaged] == [damaged]
        for digest in before.values():
            assert ChunkIndex.decode(store.repository.index_path(digest).read_bytes()).digest == digest
        files = {path.name for path in (root / "idx").iterdir()}
        assert files == {digest[7:] + suffix for digest in before.values() for suffix in (".idx", ".json")}
