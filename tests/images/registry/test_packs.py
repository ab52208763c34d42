"""Packs and the index layer: all frames together are the disk, and a layer that lies is refused."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinshare.agent.images.index import BadIndexError, ChunkIndex, index_bytes
from twinshare.agent.images.registry.packs import FrameRange, Layout, Packer, decode_layout, unpack_chunk

MIB = 1 << 20


def pack(disk: bytes, folder: Path, pack_size: int = MIB) -> tuple[Layout, list[bytes]]:
    """The layout and the packs of a disk; each pack's digest and size are checked."""
    source = folder / "disk.raw"
    source.write_bytes(disk)
    fds: list[int] = []

    def new_file() -> int:
        fds.append(os.open(folder / f"pack-{len(fds)}", os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        return fds[-1]

    with source.open("rb") as file:
        packer = Packer(file.fileno(), index_bytes(disk), new_file, pack_size)
        packs = list(packer.packs())
    contents = [(folder / f"pack-{number}").read_bytes() for number in range(len(packs))]
    for fd in fds:
        os.close(fd)
    for made, content in zip(packs, contents, strict=True):
        assert made.size == len(content) <= pack_size
        assert made.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    return packer.layout(), contents


def encoded(layout: Layout) -> bytes:
    return b"".join(layout.encoded())


def a_disk(seed: int = 1) -> bytes:
    source = random.Random(seed)
    part = source.randbytes(300_000)
    return (source.randbytes(MIB) + bytes(20 * MIB) + part + bytes(8192) + part).ljust(40 * MIB, b"\0")


def test_all_packs_together_are_the_disk_for_any_zstd(tmp_path: Path) -> None:
    disk = a_disk()
    _, packs = pack(disk, tmp_path)
    assert len(packs) > 1
    names = [str(tmp_path / f"pack-{number}") for number in range(len(packs))]
    done = subprocess.run(["zstd", "-dc", *names], stdout=subprocess.PIPE, check=True)
    assert done.stdout == disk
    assert sum(map(len, packs)) < 2 * MIB, "holes cost next to nothing"


def test_each_chunk_is_found_in_its_place(tmp_path: Path) -> None:
    disk = a_disk()
    layout, packs = pack(disk, tmp_path)
    read = decode_layout(encoded(layout), [len(content) for content in packs], 1 << 40)
    assert read == layout
    decompressor = zstandard.ZstdDecompressor()
    for (offset, length, digest), place in zip(read.index, read.ranges(), strict=True):
        frame = packs[place.pack][place.offset : place.offset + place.length]
        chunk = unpack_chunk(decompressor, frame, length)
        assert chunk == disk[offset : offset + length]
        assert blake3(chunk).digest() == digest
        for wrong in (frame[:-1], b"", bytes(len(frame))):
            with pytest.raises(BadIndexError):
                unpack_chunk(decompressor, wrong, length)
        with pytest.raises(BadIndexError):
            unpack_chunk(decompressor, frame, length + 1)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_layout_or_refused(data: bytes) -> None:
    for content in (data, zstandard.compress(data)):
        with pytest.raises(BadIndexError):
            decode_layout(content, [], 1 << 40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_changed_layout_is_refused_or_points_inside_the_packs(flips: list[tuple[int, int]]) -> None:
    index = index_bytes(random.Random(2).randbytes(400_000))
    layout = Layout.of(index, [FrameRange(0, 1000 * i, 900) for i in range(len(index))])
    plain = bytearray(zstandard.decompress(encoded(layout)))
    for place, value in flips:
        plain[place % len(plain)] ^= value
    try:
        read = decode_layout(zstandard.compress(bytes(plain)), [1 << 20], 1 << 40)
    except BadIndexError:
        return
    assert all(place.pack == 0 and place.offset + place.length <= 1 << 20 for place in read.ranges())
    assert all(offset + length <= read.index.size for offset, length, _ in read.index)


def _layer(index: ChunkIndex, *ranges: tuple[int, int, int]) -> bytes:
    return encoded(Layout.of(index, [FrameRange(*place) for place in ranges]))


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (_layer(index_bytes(b"x" * 4096)), "one frame"),
        (_layer(index_bytes(b"x" * 4096), (1, 0, 10)), "outside"),
        (_layer(index_bytes(b"x" * 4096), (0, 995, 10)), "outside"),
        (_layer(index_bytes(b"x" * 4096), (0, 0, 0)), "impossible"),
        (_layer(ChunkIndex(1 << 50, b"")), "larger"),
        (zstandard.compress(bytes(200 << 20)), "not a chunk index"),
        (b"\x28\xb5\x2f\xfd\xe0" + (3 << 30).to_bytes(8, "little"), "too large"),
        (struct.pack("<I", 0xFD2FB528) + b"\xff" * 20, "unpacked|too large"),
    ],
)
def test_a_layout_that_lies_is_refused(layer: bytes, why: str) -> None:
    with pytest.raises(BadIndexError, match=why):
        decode_layout(layer, [1000], 1 << 40)


def test_a_frame_that_unpacks_to_more_than_it_should_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    with pytest.raises(BadIndexError):
        unpack_chunk(zstandard.ZstdDecompressor(), bomb, 4096)


def test_a_disk_that_changed_under_its_index_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"y" * 8192)
    with (tmp_path / "disk").open("rb") as disk, (tmp_path / "pack").open("wb") as out:
        packer = Packer(disk.fileno(), index_bytes(b"x" * 8192), out.fileno)
        with pytest.raises(BadIndexError, match="not what its index says"):
            list(packer.packs())
