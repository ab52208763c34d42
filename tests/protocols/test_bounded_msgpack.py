"""The bounds of msgpack are read from its bytes, before any value is made."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.bounded.msgpack import MAX_DEPTH, MAX_ELEMENTS, check_msgpack
from twinshare.protocols.errors import PeerMisbehaved
from twinshare.protocols.peer_service import PeerService
from twinshare.protocols.table import methods
from twinshare.protocols.tolerant import decode_tolerantly

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS | st.just(msgpack.ExtType(5, b"abc")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=60,
)


def count(value: Any) -> int:
    """Values inside a value."""
    inside = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
    return sum(1 + count(part) for part in inside) if isinstance(inside, list) else 0


@given(VALUES)
def test_each_value_is_counted_once(value: Any) -> None:
    packed = msgpack.packb(value)
    check_msgpack(packed, elements=count(value))
    check_msgpack(packed + b"\x91", elements=count(value))
    if count(value):
        with pytest.raises(ValueError, match="more than"):
            check_msgpack(packed, elements=count(value) - 1)


@given(st.binary(max_size=200))
def test_no_bytes_are_too_strange(data: bytes) -> None:
    with suppress(ValueError):
        check_msgpack(data, elements=50, depth=3)


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"\x91", b"\xc0"), (b"\x81\xc0", b"\xc0"), (b"\xdc\x00\x01", b"\x90")]
)
def test_depth_is_bounded(opening: bytes, closing: bytes) -> None:
    check_msgpack(opening * MAX_DEPTH + closing)
    with pytest.raises(ValueError, match="deeper"):
        check_msgpack(opening * (MAX_DEPTH + 1) + closing)


@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdf\x80\x00\x00\x00"])
def test_a_number_that_is_only_claimed_costs_nothing(head: bytes) -> None:
    with pytest.raises(ValueError, match="values"):
        check_msgpack(head + bytes(1 << 20))


def test_a_mebibyte_of_empty_maps_becomes_nothing() -> None:
    packed = msgspec.msgpack.encode([{}] * 1_000_000)
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises((ValueError, PeerMisbehaved)):
            decode_tolerantly(packed, dict[str, Any])
        with pytest.raises(PeerMisbehaved):
            methods(PeerService)["list_peers"].unpack_result(packed)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
        assert time.process_time() - began < 0.5
    finally:
        tracemalloc.stop()


def test_the_largest_message_fits() -> None:
    data = {"a": [0] * 32_700}
    assert len(msgspec.json.encode(data)) < 64 << 10
    check_msgpack(msgspec.msgpack.encode({"letter": {"message_type": "x", "data": data}}))
    assert MAX_ELEMENTS > 32_768
