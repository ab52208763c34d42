"""Chunks and indexes: the properties that delta pulls rely on."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from twinshare.agent.images import chunker
from twinshare.agent.images.chunker import BLOCK, MAX_CHUNK, MIN_CHUNK, chunks, cut
from twinshare.agent.images.index import BadIndexError, ChunkIndex, index_bytes, index_file


@st.composite
def disks(draw: st.DrawFn) -> bytes:
    """Runs of random blocks and of zero blocks, with an odd tail of whole sectors."""
    source = random.Random(draw(st.integers(0, 2**32)))
    parts = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=8))
    tail = draw(st.sampled_from([0, 512, 3584]))
    body = b"".join(source.randbytes(n * BLOCK) if full else bytes(n * BLOCK) for full, n in parts)
    return body + (source.randbytes(tail) if draw(st.booleans()) else bytes(tail))


@given(disks())
def test_chunks_are_the_disk_without_its_zeros(disk: bytes) -> None:
    spans, used = cut(memoryview(disk), last=True)
    rebuilt = bytearray(len(disk))
    end = 0
    for start, stop in spans:
        assert start >= end
        assert start % BLOCK == 0
        assert 0 < stop - start <= MAX_CHUNK
        assert stop % BLOCK == 0 or stop == len(disk)
        # A chunk is short only where zeros or the end of the disk cut it off.
        assert stop - start >= MIN_CHUNK or stop == len(disk) or not any(disk[stop : stop + BLOCK])
        rebuilt[start:stop] = disk[start:stop]
        end = stop
    assert rebuilt == disk
    assert used == len(disk)


@given(disks(), st.integers(1, 40))
@settings(deadline=None)
def test_the_window_does_not_matter(disk: bytes, blocks: int) -> None:
    whole, _ = cut(memoryview(disk), last=True)
    window = MAX_CHUNK + blocks * BLOCK
    found, position = [], 0
    while position < len(disk):
        view = memoryview(disk)[position : position + window]
        spans, used = cut(view, last=position + len(view) >= len(disk))
        found += [(position + a, position + b) for a, b in spans]
        position += used
    assert found == whole


@given(disks().filter(bool), st.randoms(use_true_random=False))
def test_an_edit_changes_few_chunks(disk: bytes, source: random.Random) -> None:
    edited = bytearray(disk)
    place = source.randrange(-(-len(disk) // BLOCK)) * BLOCK
    edited[place : place + BLOCK] = source.randbytes(len(edited[place : place + BLOCK]))
    before, after = index_bytes(disk), index_bytes(bytes(edited))
    old = {digest for _, _, digest in before}
    assert sum(length for _, length, digest in after if digest not in old) <= 8 * MAX_CHUNK


@given(disks())
def test_index_round_trip(disk: bytes) -> None:
    index = index_bytes(disk)
    assert ChunkIndex.decode(index.encode()) == index
    assert index.digest.startswith("blake3:")
    assert all(blake3(disk[o : o + n]).digest() == digest for o, n, digest in index)
    assert index.data_size == sum(n for _, n, _ in index)


@given(
    st.binary(max_size=200) | st.binary(max_size=120).map(lambda b: index_bytes(bytes(4096) + b"x" * 512).encode() + b)
)
def test_any_bytes_are_an_index_or_refused(data: bytes) -> None:
    try:
        index = ChunkIndex.decode(data)
    except BadIndexError:
        return
    assert index.encode() == data


def _entries(*rows: tuple[int, int]) -> bytes:
    table = b"".join(offset.to_bytes(8, "little") + length.to_bytes(4, "little") + bytes(32) for offset, length in rows)
    return ChunkIndex(1 << 20, table).encode()


@pytest.mark.parametrize(
    "rows",
    [
        [(8192, 4096), (0, 4096)],
        [(0, 8192), (4096, 4096)],
        [(0, 0)],
        [(100, 4096)],
        [(0, MAX_CHUNK + BLOCK)],
        [(0, 5000)],
        [((1 << 20) - 4096, 8192)],
        [(1 << 63, 4096)],
    ],
)
def test_an_index_that_lies_is_refused(rows: list[tuple[int, int]]) -> None:
    with pytest.raises(BadIndexError):
        ChunkIndex.decode(_entries(*rows))


def test_the_form_of_the_file_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse, written out, and read through a small window: one index."""
    monkeypatch.setattr(chunker, "WINDOW", 512 * 1024)
    source = random.Random(5)
    disk = source.randbytes(700 * BLOCK) + bytes(300 * BLOCK) + source.randbytes(3 * BLOCK) + bytes(64 * BLOCK + 512)
    full, sparse = tmp_path / "full", tmp_path / "sparse"
    full.write_bytes(disk)
    subprocess.run(["cp", "--sparse=always", full, sparse], check=True)
    assert sparse.stat().st_blocks < full.stat().st_blocks
    expected = index_bytes(disk)
    for path in (full, sparse):
        with path.open("rb") as file:
            assert index_file(file.fileno(), len(disk)) == expected


def test_beyond_the_end_of_the_file_is_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 8192)
    with path.open("rb") as file:
        assert [(offset, len(data)) for offset, data in chunks(file.fileno(), 1 << 20)] == [(0, 8192)]
