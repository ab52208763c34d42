"""The frame reader: any cut of a good stream gives the same frames, and nothing else gets through."""

import contextlib
import itertools
import time
import tracemalloc
from collections.abc import Iterator

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.errors import PeerMisbehaved, TooLarge
from twinshare.protocols.frames import (
    BUFFER_SIZE,
    MAX_CONTROL_BODY,
    MAX_FRAME,
    READ_SIZE,
    Frame,
    FrameReader,
    Kind,
    encode,
)

frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, (1 << 63) - 1),
    st.text(max_size=16),
    st.binary(max_size=300),
)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return (data[a:b] for a, b in itertools.pairwise(edges))


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_of_the_stream_gives_the_same_frames(sent: list[Frame], cuts: list[int]) -> None:
    reader = FrameReader()
    data = b"".join(map(encode, sent))
    assert [frame for piece in pieces(data, cuts) for frame in reader.feed(piece)] == sent


@given(st.binary(max_size=400))
def test_random_bytes_give_frames_or_one_typed_error(data: bytes) -> None:
    try:
        for frame in FrameReader().feed(data):
            assert isinstance(frame, Frame)
    except PeerMisbehaved:
        pass


@given(st.lists(frames, min_size=1, max_size=3), st.integers(0), st.integers(1, 255))
def test_one_flipped_byte_gives_frames_or_one_typed_error(sent: list[Frame], where: int, flip: int) -> None:
    data = bytearray(b"".join(map(encode, sent)))
    data[where % len(data)] ^= flip
    with contextlib.suppress(PeerMisbehaved):
        list(FrameReader().feed(data))


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb([1, 2, "m"]),
        msgpack.packb([1, 2, "m", b"", 5]),
        msgpack.packb([1, 2, "m", "text"]),
        msgpack.packb([99, 2, "m", b""]),
        msgpack.packb([1, -2, "m", b""]),
        msgpack.packb([True, 2, "m", b""]),
        msgpack.packb([1, 2, "m" * 65, b""]),
        msgpack.packb([[1, 2, 3, 4], 2, "m", b""]),
        msgpack.packb({}),
        msgpack.packb(5),
        b"\x94\x01\x02\xa1\xff\xc4\x00",
        b"\xc1",
        b"\x94" * 2000,
        b"\x91" * MAX_FRAME,
        msgpack.packb([int(Kind.CANCEL), 2, "", bytes(MAX_CONTROL_BODY + 1)]),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(PeerMisbehaved):
        list(FrameReader().feed(data))


def test_a_frame_that_claims_more_than_it_may_is_refused_when_the_buffer_is_full() -> None:
    reader = FrameReader()
    with pytest.raises(PeerMisbehaved):
        list(reader.feed(b"\x94\x05\x01\xa0\xc6\x7f\xff\xff\xff" + bytes(MAX_FRAME + 2 * READ_SIZE)))


def test_the_largest_body_passes_and_one_byte_more_is_refused_by_the_sender() -> None:
    largest = Frame(Kind.RESULT, 1, "", bytes(MAX_FRAME - 256))
    assert list(FrameReader().feed(encode(largest))) == [largest]
    assert len(encode(largest)) <= MAX_FRAME
    with pytest.raises(TooLarge):
        encode(Frame(Kind.RESULT, 1, "", bytes(MAX_FRAME)))
    with pytest.raises(TooLarge):
        encode(Frame(Kind.PING, 1, "", bytes(MAX_CONTROL_BODY + 1)))


def test_a_bomb_of_empty_arrays_costs_less_than_a_second() -> None:
    def tree(depth: int) -> bytes:
        return b"\x94" + tree(depth - 1) * 4 if depth else b"\x90"

    started = time.process_time()
    with pytest.raises(PeerMisbehaved):
        list(FrameReader().feed(tree(9)))
    assert time.process_time() - started < 1


def test_a_reader_holds_little_whatever_it_has_read() -> None:
    """Each session has one for as long as it lasts, and a peer has two sessions."""
    small, large = encode(Frame(Kind.CALL, 1, "m", b"x" * 100)), encode(Frame(Kind.CALL, 1, "m", b"x" * 1_000_000))
    stream = small * 50 + large + small * 2000 + large + small
    tracemalloc.start()
    try:
        readers = [FrameReader() for _ in range(8)]
        for reader in readers:
            found = 0
            for start in range(0, len(stream), 8192):
                found += len(list(reader.feed(stream[start : start + 8192])))
            assert found == 2053
        # The stack of msgpack's reader alone has 40 kB.
        assert tracemalloc.get_traced_memory()[0] < len(readers) * (50_000 + 2 * BUFFER_SIZE)
    finally:
        tracemalloc.stop()
