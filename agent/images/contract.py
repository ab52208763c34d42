"""What every image store must do. The memory adapter and the store on disk pass the same check, and so must any other.

`trio.run(check_image_store, open_store, folder)` raises AssertionError where a store breaks the port's promises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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
)
from ...protocols.operation import Progress
from .contract_overlays import check_captures, check_overlays
from .contract_samples import MIB, nobody, pieces, qcow2_disk, quiet, raw_disk, refused
from .port import ImageStore, Origin, Requester

OpenStore = Callable[[], AbstractAsyncContextManager[ImageStore]]


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
            check_overlays,
            check_captures,
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
        await refused(ImageNotFound, store.get_image(ref))
    for ref in ("../one", "/etc/passwd", "", "One", f"one@{first.digest}", first.digest):
        await refused(InvalidRequest, store.add_image(ref, pieces(raw_disk(1)), report=quiet))
    await refused(InvalidRequest, store.get_image("../one"))
    assert await store.add_image("one", pieces(raw_disk(1)), report=quiet) == first, "twice the same is no error"
    await refused(ImageExists, store.add_image("one", pieces(raw_disk(2)), report=quiet))
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
        message = await refused(InvalidRequest, store.add_image("bad", pieces(content), report=quiet))
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
    await refused(ImageNotFound, store.get_image("a"))
    message = await refused(ImageInUse, store.remove_image("b", used_by=two_vms))
    assert "vm-1" in message
    assert "vm-2" in message
    await refused(ImageInUse, store.remove_image(image.digest, used_by=two_vms))
    assert (await store.get_image("b")).digest == image.digest
    await store.add_image("b", pieces(raw_disk(6)), report=quiet, replace=True)
    left = await store.get_image(image.digest)
    assert (left.name, left.tag) == ("", ""), "a name that moves on leaves the base behind"
    assert len(await store.list_images()) == 2
    await store.remove_image(image.digest, used_by=nobody)
    await store.remove_image("b", used_by=nobody)
    assert list(await store.list_images()) == []
    await refused(ImageDamaged, store.make_overlay(image.digest, folder / "late.qcow2", MIB))
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
    await refused(Forbidden, store.add_image("ann", pieces(raw_disk(41)), report=quiet, origin=bobs, replace=True))
    for ref in ("ann", first.digest):
        await refused(Forbidden, store.remove_image(ref, used_by=nobody, caller=bob))
    assert list(await store.prune_images(used_by=nobody, everything=True, dry_run=False, caller=bob)) == []
    assert (await store.remove_image("bob", used_by=nobody, caller=bob)).owner == bob.principal
    await refused(Forbidden, store.remove_image(first.digest, used_by=nobody, caller=bob))
    await store.add_image("ann", pieces(raw_disk(42)), report=quiet, origin=anns, replace=True)
    assert [image.owner for image in await store.list_images()] == [ann.principal] * 2, "also of the one without a name"
    assert list(await store.prune_images(used_by=nobody, everything=False, dry_run=False, caller=bob)) == []
    assert len(await store.prune_images(used_by=nobody, everything=False, dry_run=False, caller=ann)) == 1
    taken = await store.add_image("ann", pieces(raw_disk(43)), report=quiet, origin=nodes, replace=True)
    assert taken.owner == LOCAL_ADMIN.principal
    await refused(Forbidden, store.remove_image("ann", used_by=nobody, caller=ann))
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
