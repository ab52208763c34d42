"""What every image store must do. The memory adapter and the store on disk pass the same check, and so must any other.

`trio.run(check_image_store, open_store, folder)` raises AssertionError where a store breaks the port's promises.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from ...protocols.access import LOCAL_ADMIN, Caller, Role
from ...protocols.errors import (
    Forbidden,
    ImageDamaged,
    ImageExists,
    ImageInUse,
    ImageNotFound,
    InvalidRequest,
    TwinshareError,
    WrongState,
)
from ...protocols.operation import Progress
from . import qcow2
from .port import ImageExchange, ImageStore, Origin, Overlay, Requester

MIB = 1 << 20
OpenStore = Callable[[], AbstractAsyncContextManager[ImageStore]]


def raw_disk(seed: int, size: int = MIB) -> bytes:
    """A disk of `size` bytes: a boot sector, some data that depends on `seed`, holes, an end within a block."""
    pattern = bytes((seed * 31 + place * 7 + place // 251) % 256 for place in range(4096))
    return with_boot_sector(pattern * 20 + bytes(65536) + pattern * 5).ljust(size, b"\0")


def with_boot_sector(disk: bytes) -> bytes:
    """Sign the first sector of a disk, so that it can be recognised as one."""
    return disk[:510] + b"\x55\xaa" + disk[512:]


def qcow2_disk(size: int, backing: str = "", *, crypt: int = 0, incompatible: int = 0) -> bytes:
    """An empty qcow2 disk, with the odd features that are to be refused."""
    disk = bytearray(qcow2.empty_length(min(size, 1 << 40)))
    for offset, data in qcow2.empty_disk(min(size, 1 << 40), backing):
        disk[offset : offset + len(data)] = data
    disk[24:32] = size.to_bytes(8, "big")
    disk[32:36] = crypt.to_bytes(4, "big")
    disk[72:80] = incompatible.to_bytes(8, "big")
    return bytes(disk)


async def pieces(content: bytes, step: int = 50_000) -> AsyncIterator[bytes]:
    """`content` as it comes over a wire."""
    for start in range(0, len(content), step):
        yield content[start : start + step]


def nobody(_digest: str) -> list[str]:
    return []


def quiet(_progress: Progress) -> None:
    return


async def check_image_store(open_store: OpenStore, folder: Path) -> None:
    """Run every part of the contract, each on a fresh store. `folder` is for overlays."""
    for number, part in enumerate(
        (
            _names,
            _owners,
            _content,
            _bad_content,
            _broken_off,
            _removal,
            _pruning,
            _checking,
            _overlays,
            _captures,
            _two_at_once,
        )
    ):
        room = folder / str(number)
        room.mkdir()
        async with open_store() as store:
            assert list(await store.list_images()) == [], "a new store is empty"
            await part(store, room)


async def _names(store: ImageStore, _folder: Path) -> None:
    first = await store.add_image("one", pieces(raw_disk(1)), report=quiet, origin=Origin("here"))
    assert (first.name, first.tag, first.registry, first.source) == ("one", "latest", "local", "here")
    again = await store.add_image("ghcr.io/org/one:v1", pieces(raw_disk(1)), report=quiet)
    assert again.digest == first.digest, "the same bytes are the same image"
    assert (again.name, again.tag, again.registry) == ("org/one", "v1", "ghcr.io")
    assert [(i.registry, i.name, i.tag) for i in await store.list_images()] == [
        ("local", "one", "latest"),
        ("ghcr.io", "org/one", "v1"),
    ]
    for ref in ("one", "one:latest", "ghcr.io/org/one:v1", first.digest, f"one@{first.digest}"):
        assert (await store.get_image(ref)).digest == first.digest, ref
    for ref in ("two", "one:v2", "org/one:v1", "ghcr.io/org/one", "blake3:" + "0" * 64, "one@sha256:" + "0" * 64):
        await _refused(ImageNotFound, store.get_image(ref))
    for ref in ("../one", "/etc/passwd", "", "One", f"one@{first.digest}", first.digest):
        await _refused(InvalidRequest, store.add_image(ref, pieces(raw_disk(1)), report=quiet))
    await _refused(InvalidRequest, store.get_image("../one"))
    assert await store.add_image("one", pieces(raw_disk(1)), report=quiet) == first, "twice the same is no error"
    await _refused(ImageExists, store.add_image("one", pieces(raw_disk(2)), report=quiet))
    assert (await store.get_image("one")) == first, "a refused import changes nothing"
    moved = await store.add_image("one", pieces(raw_disk(2)), report=quiet, replace=True)
    assert moved.digest != first.digest
    assert (await store.get_image("one")).digest == moved.digest
    assert (await store.get_image(first.digest)).name == "org/one"
    assert len(await store.list_images()) == 2


async def _content(store: ImageStore, _folder: Path) -> None:
    seen: list[Progress] = []
    disk = raw_disk(3)
    image = await store.add_image("raw", pieces(disk), report=seen.append)
    assert image.size == MIB
    assert image.allocated < MIB
    assert seen, "an import tells how far it is"
    assert all(p.unit == "bytes" for p in seen)
    received = [p.done for p in seen if p.message == "receiving"]
    assert received == sorted(received)
    assert received[-1] == len(disk)
    odd = await store.add_image("odd", pieces(disk + b"end"), report=quiet)
    assert odd.size == MIB + 512, "a guest sees whole sectors"
    padded = await store.add_image("padded", pieces((disk + b"end").ljust(MIB + 512, b"\0")), report=quiet)
    assert padded.digest == odd.digest
    assert (await store.add_image("qcow2", pieces(qcow2_disk(64 * MIB)), report=quiet)).size == 64 * MIB


async def _bad_content(store: ImageStore, _folder: Path) -> None:
    for why, content in {
        "empty": b"",
        "a backing file": qcow2_disk(MIB, "/etc/passwd"),
        "a data file": qcow2_disk(MIB, incompatible=4),
        "encryption": qcow2_disk(MIB, crypt=2),
        "an absurd size": qcow2_disk(1 << 62),
        "no size": qcow2_disk(0),
        "a header that is cut off": qcow2_disk(MIB)[:60],
        "another format": b"KDMV" + bytes(600),
        "nothing that is known": bytes(range(256)) * 400,
    }.items():
        message = await _refused(InvalidRequest, store.add_image("bad", pieces(content), report=quiet))
        assert message, why
    assert list(await store.list_images()) == []
    taken = await store.add_image("unknown", pieces(bytes(range(256)) * 400), report=quiet, origin=Origin(raw=True))
    assert taken.size == 256 * 400, "who says that it is a raw disk is believed"


async def _broken_off(store: ImageStore, _folder: Path) -> None:
    """A source that fails, and a caller that is cancelled, leave nothing."""

    class BrokenError(Exception):
        pass

    async def breaks() -> AsyncIterator[bytes]:
        yield raw_disk(4)
        raise BrokenError

    try:
        await store.add_image("broken", breaks(), report=quiet)
    except BrokenError:
        pass
    else:
        raise AssertionError("the source's own error comes through")

    async def hangs() -> AsyncIterator[bytes]:
        yield raw_disk(4)
        await trio.sleep_forever()

    with trio.move_on_after(0.1) as scope:
        await store.add_image("hung", hangs(), report=quiet)
    assert scope.cancelled_caught
    assert list(await store.list_images()) == []


async def _removal(store: ImageStore, folder: Path) -> None:
    image = await store.add_image("a", pieces(raw_disk(5)), report=quiet)
    await store.add_image("b", pieces(raw_disk(5)), report=quiet)

    def two_vms(digest: str) -> list[str]:
        assert digest == image.digest
        return ["vm-1", "vm-2"]

    assert (await store.remove_image("a", used_by=two_vms)).name == "a"
    await _refused(ImageNotFound, store.get_image("a"))
    message = await _refused(ImageInUse, store.remove_image("b", used_by=two_vms))
    assert "vm-1" in message
    assert "vm-2" in message
    await _refused(ImageInUse, store.remove_image(image.digest, used_by=two_vms))
    assert (await store.get_image("b")).digest == image.digest
    await store.add_image("b", pieces(raw_disk(6)), report=quiet, replace=True)
    left = await store.get_image(image.digest)
    assert (left.name, left.tag) == ("", ""), "a name that moves on leaves the base behind"
    assert len(await store.list_images()) == 2
    await store.remove_image(image.digest, used_by=nobody)
    await store.remove_image("b", used_by=nobody)
    assert list(await store.list_images()) == []
    await _refused(ImageDamaged, store.make_overlay(image.digest, folder / "late.qcow2", MIB))
    assert (await store.add_image("a", pieces(raw_disk(5)), report=quiet)).digest == image.digest, "it can come back"


async def _pruning(store: ImageStore, _folder: Path) -> None:
    old = await store.add_image("moving", pieces(raw_disk(20)), report=quiet)
    await store.add_image("moving", pieces(raw_disk(21)), report=quiet, replace=True)
    await store.add_image("used", pieces(raw_disk(22)), report=quiet)
    used = (await store.get_image("used")).digest

    def used_by(digest: str) -> list[str]:
        return ["vm"] if digest == used else []

    for dry_run in (True, False):
        gone = await store.prune_images(used_by=used_by, everything=False, dry_run=dry_run)
        assert [image.digest for image in gone] == [old.digest]
    assert [image.name for image in await store.list_images()] == ["moving", "used"]
    assert len(await store.prune_images(used_by=used_by, everything=True, dry_run=True)) == 1
    assert len(await store.prune_images(used_by=used_by, everything=True, dry_run=False)) == 1
    assert [image.name for image in await store.list_images()] == ["used"]
    assert list(await store.prune_images(used_by=used_by, everything=True, dry_run=False)) == []


async def _owners(store: ImageStore, _folder: Path) -> None:
    """Whoever adds a name owns it; nobody else but an admin moves it, removes it, or removes what it stands for."""
    ann, bob = (Caller(principal=f"token:{name}", role=Role.OPERATOR) for name in ("ann", "bob"))
    anns, bobs, nodes = Origin("x", requester=Requester(ann)), Origin("x", requester=Requester(bob)), Origin("x")
    first = await store.add_image("ann", pieces(raw_disk(40)), report=quiet, origin=anns)
    same = await store.add_image("bob", pieces(raw_disk(40)), report=quiet, origin=bobs)
    assert (first.owner, same.owner) == (ann.principal, bob.principal)
    again = await store.add_image("ann", pieces(raw_disk(40)), report=quiet, origin=bobs, replace=True)
    assert again.owner == ann.principal, "a name that is there stays whose it is"
    await _refused(Forbidden, store.add_image("ann", pieces(raw_disk(41)), report=quiet, origin=bobs, replace=True))
    for ref in ("ann", first.digest):
        await _refused(Forbidden, store.remove_image(ref, used_by=nobody, caller=bob))
    assert list(await store.prune_images(used_by=nobody, everything=True, dry_run=False, caller=bob)) == []
    assert (await store.remove_image("bob", used_by=nobody, caller=bob)).owner == bob.principal
    await _refused(Forbidden, store.remove_image(first.digest, used_by=nobody, caller=bob))
    await store.add_image("ann", pieces(raw_disk(42)), report=quiet, origin=anns, replace=True)
    assert [image.owner for image in await store.list_images()] == [ann.principal] * 2, "also of the one without a name"
    assert list(await store.prune_images(used_by=nobody, everything=False, dry_run=False, caller=bob)) == []
    assert len(await store.prune_images(used_by=nobody, everything=False, dry_run=False, caller=ann)) == 1
    taken = await store.add_image("ann", pieces(raw_disk(43)), report=quiet, origin=nodes, replace=True)
    assert taken.owner == LOCAL_ADMIN.principal
    await _refused(Forbidden, store.remove_image("ann", used_by=nobody, caller=ann))
    assert (await store.remove_image("ann", used_by=nobody)).name == "ann"


async def _checking(store: ImageStore, _folder: Path) -> None:
    image = await store.add_image("one", pieces(raw_disk(1)), report=quiet)
    await store.add_image("two:v2", pieces(raw_disk(2)), report=quiet)
    heard: list[Progress] = []
    checked = await store.fsck_images(used_by=nobody, report=heard.append)
    assert (checked.images, list(checked.findings)) == (2, []), "nothing is wrong with what was just taken in"
    assert checked.bytes > 0
    assert heard
    assert list(store.problems) == []
    assert not (await store.get_image(image.digest)).damaged


async def _overlays(store: ImageStore, folder: Path) -> None:
    image = await store.add_image("base", pieces(raw_disk(7)), report=quiet)
    other = await store.add_image("other", pieces(raw_disk(8)), report=quiet)
    path = folder / "disk.qcow2"
    await store.make_overlay(image.digest, path, 10 * MIB)
    header = qcow2.parse_header(path.read_bytes())
    assert header.size == 10 * MIB
    assert header.has_backing_file
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"a guest's data")
    written = path.read_bytes()
    await store.make_overlay(image.digest, path, 10 * MIB)
    assert path.read_bytes() == written, "what a guest wrote stays"
    await _refused(WrongState, store.make_overlay(image.digest, path, 20 * MIB))
    await _refused(WrongState, store.make_overlay(other.digest, path, 10 * MIB))
    (folder / "link.qcow2").symlink_to(folder / "elsewhere")
    await _refused(WrongState, store.make_overlay(image.digest, folder / "link.qcow2", 10 * MIB))
    await _refused(InvalidRequest, store.make_overlay(image.digest, folder / "small.qcow2", MIB - 512))
    await _refused(InvalidRequest, store.make_overlay(image.digest, folder / "odd.qcow2", MIB + 1))
    await _refused(ImageDamaged, store.make_overlay("blake3:" + "0" * 64, folder / "none.qcow2", MIB))
    await store.make_overlay(image.digest, folder / "exact.qcow2", MIB)
    assert sorted(p.name for p in folder.iterdir()) == ["disk.qcow2", "exact.qcow2", "link.qcow2"]


async def _captures(store: ImageStore, folder: Path) -> None:
    image = await store.add_image("base", pieces(raw_disk(15)), report=quiet)
    overlay, size = folder / "disk.qcow2", 2 * MIB
    await store.make_overlay(image.digest, overlay, size)
    seen: list[Progress] = []
    made = await store.add_disk(
        "made:v1", Overlay(overlay, image.digest), size, report=seen.append, origin=Origin("vm one")
    )
    assert (made.name, made.tag, made.size, made.source) == ("made", "v1", size, "vm one")
    assert seen, "a capture tells how far it is"
    again = await store.add_disk("again", Overlay(overlay, image.digest), size, report=quiet, origin=Origin("vm one"))
    assert again.digest == made.digest, "what nobody has written to is the same image"

    async def refused(kind: type[TwinshareError], disk: Path, name: str = "x", size: int = size) -> None:
        overlay = Overlay(disk, image.digest if kind is not ImageDamaged else "blake3:" + "0" * 64)
        await _refused(kind, store.add_disk(name, overlay, size, report=quiet, origin=Origin("")))

    await refused(ImageExists, overlay, "base")
    await refused(InvalidRequest, overlay, "../x")
    await refused(ImageDamaged, overlay)
    await refused(WrongState, overlay, size=MIB)
    await refused(WrongState, folder / "none")
    other = folder / "other.qcow2"
    other.write_bytes(qcow2_disk(size, "/etc/passwd"))
    await refused(WrongState, other)
    other.write_bytes(qcow2_disk(size))
    await refused(WrongState, other)
    await _refused(ImageNotFound, store.get_image("x"))


async def _two_at_once(store: ImageStore, _folder: Path) -> None:
    results: list[str] = []

    async def add(ref: str, seed: int) -> None:
        try:
            results.append((await store.add_image(ref, pieces(raw_disk(seed)), report=quiet)).digest)
        except ImageExists:
            results.append("exists")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(add, f"same-{number}", 9)
        nursery.start_soon(add, "raced", 10)
        nursery.start_soon(add, "raced", 11)
    assert len(set(results)) == 3
    assert results.count("exists") == 1, "of two contents for one name, one wins"
    images = await store.list_images()
    assert len(images) == 5
    assert len({image.digest for image in images}) == 2


OpenExchange = Callable[[], AbstractAsyncContextManager[tuple[ImageStore, ImageExchange]]]


async def check_image_exchange(open_exchange: OpenExchange, host: str) -> None:
    """Two nodes and an empty registry at `host`, which takes pushes: what one sends, the other gets."""
    async with open_exchange() as (here, ours), open_exchange() as (there, theirs):
        image = await here.add_image("disk", pieces(raw_disk(30)), report=quiet)
        ref = f"{host}/org/disk:v1"
        assert ours.knows(ref)
        assert not ours.knows("blake3:" + "0" * 64)
        await _refused(ImageNotFound, theirs.pull_image(ref, report=quiet))
        await _refused(ImageNotFound, ours.push_image("absent", ref, report=quiet))
        await _refused(InvalidRequest, ours.push_image("disk", "no-registry", report=quiet))
        await _refused(InvalidRequest, theirs.pull_image("http://127.0.0.1/x.raw", report=quiet, sha256="0" * 64))
        await _refused(InvalidRequest, theirs.pull_image("https://127.0.0.1/x.raw", report=quiet))
        assert (await ours.push_image("disk", ref, report=quiet, dry_run=True)).manifest == ""
        await _refused(ImageNotFound, theirs.pull_image(ref, report=quiet))
        pushed = await ours.push_image("disk", ref, report=quiet)
        assert pushed.target == ref
        assert pushed.manifest.startswith("sha256:")
        seen: list[Progress] = []
        got = await theirs.pull_image(ref, report=seen.append)
        assert got.digest == image.digest
        assert (got.registry, got.name, got.tag) == (host, "org/disk", "v1")
        assert (await theirs.find_image(ref)).digest == image.digest
        assert (await theirs.pull_image(ref, report=quiet, name="mine:1")).name == "mine"
        await here.add_image("disk", pieces(raw_disk(31)), report=quiet, replace=True)
        moved = await ours.push_image("disk", ref, report=quiet)
        assert moved.manifest != pushed.manifest
        await theirs.pull_image(ref, report=quiet)
        assert (await there.get_image(ref)).digest != image.digest, "a tag that moved is followed"
        assert (await there.get_image("mine:1")).digest == image.digest


async def _refused(kind: type[TwinshareError], attempt: Awaitable[object]) -> str:
    try:
        result = await attempt
    except kind as error:
        return error.message
    raise AssertionError(f"{kind.__name__} was expected, not {result!r}")
