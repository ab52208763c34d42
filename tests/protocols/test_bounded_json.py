"""JSON and JWS are bounded before values are made of them: what is within the bounds is never refused."""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.bounded.json import MAX_DEPTH, MAX_ELEMENTS, BadMember, check_json, check_single_members
from twinshare.protocols.bounded.jws import MAX_CLAIMS_ELEMENTS, MAX_HEADER, check_jws, read_jws_header

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def size_of(value: Any) -> tuple[int, int]:
    """How many values there are in one, itself not counted, and how deep it nests."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    if inside is None:
        return 0, 0
    sizes = [size_of(one) for one in inside]
    return len(inside) + sum(count for count, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)


@given(value=VALUES, ascii=st.booleans())
def test_a_document_within_the_bounds_is_never_refused(value: Any, ascii: bool) -> None:
    count, depth = size_of(value)
    document = json.dumps(value, ensure_ascii=ascii).encode(errors="surrogatepass")
    check_json(document, elements=2 * count + 1, depth=max(depth, 1))
    if depth:
        with pytest.raises(ValueError, match="nests deeper"):
            check_json(document, elements=2 * count + 1, depth=depth - 1)
    if count > 1:
        with pytest.raises(ValueError, match="more than"):
            check_json(document, elements=count // 2 - 1, depth=depth)


def test_the_bounds() -> None:
    check_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nests deeper than 40 levels"):
        check_json(b"[" * (MAX_DEPTH + 1))
    check_json(b"[" + b"1," * (MAX_ELEMENTS - 1) + b"1]")
    with pytest.raises(ValueError, match="more than 100000 values"):
        check_json(b"[" + b"1," * MAX_ELEMENTS + b"1]")
    for text in (b'"[[[[,,,{{{"', b'"\\"[[["', b'"\\\\"', b'"[[[[[', b'"[[[\\'):
        check_json(text, elements=0, depth=0)
    with pytest.raises(ValueError, match="nests deeper"):
        check_json(b'"\\\\"[[', elements=9, depth=1)


@given(value=VALUES, ascii=st.booleans())
def test_a_document_whose_members_are_single_is_never_refused(value: Any, ascii: bool) -> None:
    check_single_members(json.dumps(value, ensure_ascii=ascii).encode())


@pytest.mark.parametrize(
    "document",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'[{"b":[{"x":1,"a":NaN,"a":1}]}]',
        b'{"n":%s,"a":{},"a":[]}' % (b"9" * 100_000),
    ],
)
def test_a_member_that_is_there_twice_is_named(document: bytes) -> None:
    with pytest.raises(BadMember, match="is there twice") as wrong:
        check_single_members(document)
    assert wrong.value.member == "a"


@pytest.mark.parametrize("text", [b'"\\', b'\\"', b'"a', b'"', b"[]", b'{"a":'])
def test_the_time_grows_with_the_length_alone(text: bytes) -> None:
    begun = time.process_time()
    check_json(text * (1 << 18), elements=1 << 22, depth=1 << 22)
    assert time.process_time() - begun < 1.0


def token(header: bytes, payload: bytes = b"{}") -> str:
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, b"signature"))


def test_the_header_of_a_token_is_small_and_flat() -> None:
    assert read_jws_header(token(b'{"alg":"Ed25519","kid":"a"}')) == b'{"alg":"Ed25519","kid":"a"}'
    for header in (b"", b"[]", b"[[[[[[", b'{"a":[[[[[]]]]]}', b'{"a":[' + b"1," * 64 + b"1]}", b'{"a":"\xff"}',
                   b'{"a":"' + b"x" * MAX_HEADER + b'"}'):  # fmt: skip
        with pytest.raises(ValueError):
            read_jws_header(token(header))
        with pytest.raises(ValueError):
            check_jws(token(header))


def test_a_token_has_three_parts_and_bounded_claims() -> None:
    check_jws(token(b"{}", b'{"sub":"a"}'), claims=True)
    many = b"[" + b"1," * MAX_CLAIMS_ELEMENTS + b"1]"
    check_jws(token(b"{}", many))
    for wrong in ("e30", "e30.e30", "e30.e30.e30.e30", "e30.e30.a", "e30.e30.+/", token(b"{}", many)):
        with pytest.raises(ValueError):
            check_jws(wrong, claims=True)
