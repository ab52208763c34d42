"""An index made by the help of another is what cutting the whole disk gives, and costs no cutting where it need not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.images.stores import disk_store
from tests.images.test_chunker import disks
from twinshare.agent.images import chunker, rechunk
from twinshare.agent.images.chunker import BLOCK, MAX_CHUNK
from twinshare.agent.images.contract_samples import pieces, quiet, with_boot_sector
from twinshare.agent.images.index import ChunkIndex, index_bytes
from twinshare.agent.images.port import Origin, Overlay
from twinshare.agent.images.rechunk import index_like

MIB = 1 << 20


def quiet_check() -> None:
    return


@contextmanager
def stored(disk: bytes, *, sparse: bool) -> Iterator[int]:
    """The disk in a file, its zero blocks written out or not."""
    with TemporaryFile() as file:
        for start in range(0, len(disk), BLOCK):
            block = disk[start : start + BLOCK]
            if any(block) or not sparse:
                file.seek(start)
                file.write(block)
        file.truncate(len(disk))
        file.flush()
        yield file.fileno()


def recut_as(known: ChunkIndex, disk: bytes, *, sparse: bool = True) -> ChunkIndex:
    with stored(disk, sparse=sparse) as fd:
        return index_like(fd, len(disk), known, quiet_check)


@st.composite
def changes(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A disk, and the same after a guest has used it, which may have made it longer."""
    disk = draw(disks())
    source = random.Random(draw(st.integers(0, 2**32)))
    changed = bytearray(disk)
    changed += bytes(draw(st.sampled_from([0, 512, BLOCK, 40 * BLOCK])))
    blocks = len(changed) // BLOCK
    for _ in range(draw(st.integers(0, 6)) if blocks else 0):
        start = source.randrange(blocks) * BLOCK
        length = min(draw(st.sampled_from([1, 2, 5, 30, 70])) * BLOCK, len(changed) - start)
        kind = draw(st.sampled_from(["random", "zeros", "from elsewhere", "one byte"]))
        if kind == "one byte":
            changed[start + source.randrange(BLOCK)] ^= 1
        else:
            elsewhere = source.randrange(blocks) * BLOCK
            new = {"random": source.randbytes(length), "zeros": bytes(length), "from elsewhere": None}[kind]
            changed[start : start + length] = new or bytes(changed[elsewhere : elsewhere + length]).ljust(length, b"\0")
    return disk, bytes(changed)


@settings(deadline=None, max_examples=200)
@given(changes(), st.booleans())
def test_the_index_is_that_of_the_whole_disk(disks: tuple[bytes, bytes], sparse: bool) -> None:
    before, after = disks
    assert recut_as(index_bytes(before), after, sparse=sparse) == index_bytes(after)


@settings(deadline=None)
@given(disks(), disks())
def test_what_it_is_compared_with_does_not_matter(one: bytes, other: bytes) -> None:
    assert recut_as(index_bytes(one), other) == index_bytes(other)
    assert recut_as(ChunkIndex(0, b""), other) == index_bytes(other)


def test_a_chunk_that_ended_where_nothing_followed_goes_on_where_something_does() -> None:
    source = random.Random(1)
    start = source.randbytes(BLOCK)
    for rest in (BLOCK, BLOCK // 2):
        before = (start + bytes(10 * BLOCK))[: BLOCK + rest]
        after = start + source.randbytes(3 * BLOCK)
        assert recut_as(index_bytes(before), after) == index_bytes(after)
        assert recut_as(index_bytes(after), before) == index_bytes(before)
    odd = source.randbytes(BLOCK + 512)
    assert recut_as(index_bytes(odd), odd + bytes(BLOCK)) == index_bytes(odd + bytes(BLOCK))


def test_only_what_changed_is_cut_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(2)
    before = source.randbytes(20 * MIB) + bytes(5 * MIB) + source.randbytes(10 * MIB)
    after = bytearray(before)
    for place in (3 * MIB, 11 * MIB, 30 * MIB):
        after[place : place + 3 * BLOCK] = source.randbytes(3 * BLOCK)
    cut: list[int] = []

    def counting(window: memoryview, *, last: bool, enough: int) -> tuple[list[tuple[int, int]], int]:
        spans, used = chunker.cut(window, last=last, enough=enough)
        cut.append(used)
        return spans, used

    monkeypatch.setattr(rechunk, "cut", counting)
    known = index_bytes(before)
    cut.clear()
    assert recut_as(known, before) == known
    assert cut == []
    assert recut_as(known, bytes(after)) == index_bytes(bytes(after))
    assert len(cut) <= 12
    assert sum(cut) <= 3 * 3 * MAX_CHUNK


async def test_an_image_of_a_vm_is_the_same_by_whatever_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = with_boot_sector(random.Random(3).randbytes(6 * MIB))
    compared: list[int] = []

    def counting(fd: int, size: int, known: ChunkIndex, check: object, folder: Path) -> ChunkIndex:
        compared.append(len(known))
        return index_like(fd, size, known, quiet_check)

    monkeypatch.setattr("twinshare.agent.images.store.index_like", counting)
    async with disk_store(tmp_path / "images") as store:
        base = await store.add_image("base", pieces(disk), report=quiet)
        overlay = tmp_path / "disk.qcow2"
        await store.make_overlay(base.digest, overlay, 16 * MIB)
        argv = [
            "qemu-io",
            "-f",
            "qcow2",
            "-c",
            "write -P 7 1M 100k",
            "-c",
            "write -z 3M 64k",
            "-c",
            "write -P 9 9M 64k",
        ]
        await trio.run_process([*argv, str(overlay)], capture_stdout=True)
        made = await store.add_disk(
            "made", Overlay(overlay, base.digest), 16 * MIB, report=quiet, origin=Origin("a VM")
        )
        expected = bytearray(disk.ljust(16 * MIB, b"\0"))
        expected[MIB : MIB + 102400] = b"\7" * 102400
        expected[3 * MIB : 3 * MIB + 65536] = bytes(65536)
        expected[9 * MIB : 9 * MIB + 65536] = b"\x09" * 65536
        assert store.base_path(made.digest).read_bytes() == expected
        assert made.digest == index_bytes(bytes(expected)).digest
        assert compared == [len(index_bytes(disk))]
        # Without the base's index, or with another in its place, it takes longer and is the same.
        for content in (b"", index_bytes(bytes(expected)).encode()):
            store.repository.index_path(base.digest).write_bytes(content)
            again = await store.add_disk(
                "again", Overlay(overlay, base.digest), 16 * MIB, report=quiet, origin=Origin("a VM")
            )
            assert again.digest == made.digest
        assert len(compared) == 1
