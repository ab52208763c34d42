"""What does not get smaller is sent of an image as it is, in frames that every zstd reads."""

import os
from pathlib import Path

import pytest
import zstandard

from twinshare.agent.images.compression import plain_content, plain_frame
from twinshare.agent.images.index import index_bytes
from twinshare.agent.images.peer_serve import SharedDisk
from twinshare.agent.images.registry.packs import MAX_FRAME, unpack_chunk
from twinshare.protocols.blob import LENGTH


@pytest.mark.parametrize("size", [1, 4096, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 1 << 18])
def test_a_plain_frame_is_zstd(size: int) -> None:
    data = os.urandom(size)
    frame = b"".join(plain_frame(data))
    assert len(frame) <= MAX_FRAME
    assert zstandard.frame_content_size(frame) == size
    assert unpack_chunk(zstandard.ZstdDecompressor(), frame, size) == data
    assert plain_content(memoryview(frame)) == (data if size <= 1 << 17 else None)


def test_the_content_of_other_frames_is_not_taken_as_it_is() -> None:
    frame = b"".join(plain_frame(b"x" * 100))
    others = [frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :] for at in range(12)]
    for other in (*others, frame[:-1], frame + b"x", b"", zstandard.ZstdCompressor().compress(b"x" * 100)):
        assert plain_content(memoryview(other)) is None


def test_what_can_be_read_is_sent_beside_what_cannot(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "disk").write_bytes(content[: 1 << 19])
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        disk = SharedDisk(fd, index_bytes(content))
        answer = memoryview(b"".join(disk.pack(range(len(disk.index)))))
    finally:
        os.close(fd)
    for offset, length, _ in disk.index:
        (size,) = LENGTH.unpack(answer[: LENGTH.size])
        frame, answer = answer[LENGTH.size : LENGTH.size + size], answer[LENGTH.size + size :]
        if offset + length <= 1 << 19:
            data = unpack_chunk(zstandard.ZstdDecompressor(), frame, length)
            assert data == content[offset : offset + length]
        else:
            assert not frame
    assert not answer


def test_what_does_not_get_smaller_is_sent_as_it_is(tmp_path: Path) -> None:
    content = os.urandom(2 << 20) + b"text " * 400_000
    (tmp_path / "disk").write_bytes(content)
    fd = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        disk, position, sizes = SharedDisk(fd, index_bytes(content)), 0, []
        for place, (_, length, _) in enumerate(disk.index):
            answer = b"".join(disk.pack([place]))
            frame = answer[LENGTH.size :]
            assert unpack_chunk(zstandard.ZstdDecompressor(), frame, length) == content[position : position + length]
            sizes.append(len(frame) / length)
            position += length
    finally:
        os.close(fd)
    assert sizes[0] > 1, "random data is not compressed"
    assert sizes[-1] < 0.1, "and text after it is"
