"""Agreeing on a protocol, also with far sides that stop half way or send nonsense."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from twinshare.agent.p2p.libp2p.multistream import (
    MAX_OFFERS,
    MULTISTREAM,
    NegotiationFailed,
    NotSpoken,
    TokenReader,
    answer,
    encode,
    select,
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), max_size=5), st.integers(1, 9))
def test_tokens_in_any_pieces(tokens: list[str], cut: int) -> None:
    wire = b"".join(encode(token) for token in tokens) + b"rest"
    reader = TokenReader()
    got: list[str] = []
    for at in range(0, len(wire), cut):
        reader.feed(wire[at : at + cut])
        while len(got) < len(tokens) and (token := reader.take()) is not None:
            got.append(token)
    assert got == tokens
    assert reader.rest == b"rest"


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_random_bytes_give_tokens_or_a_failure(data: bytes) -> None:
    reader = TokenReader()
    reader.feed(data)
    try:
        while reader.take() is not None:
            pass
    except NegotiationFailed:
        pass


@pytest.mark.parametrize("wire", [b"\x00", b"\xff\xff\xff\xff\x7f", b"\xff\x7f", b"\x03abc"])
def test_lengths_and_tokens_that_cannot_be(wire: bytes) -> None:
    reader = TokenReader()
    reader.feed(wire)
    with pytest.raises(NegotiationFailed):
        reader.take()


async def converse(near_asks: str, speaks: set[str]) -> tuple[bytes, tuple[str, bytes]]:
    near, far = memory_stream_pair()
    results: dict[str, tuple[str, bytes]] = {}

    async def far_side() -> None:
        results["far"] = await answer(far.receive_some, far.send_all, speaks.__contains__)
        await far.send_all(b"banner")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(far_side)
        rest = await select(near.receive_some, near.send_all, near_asks)
        rest = rest or bytes(await near.receive_some())
    return rest, results["far"]


async def test_both_sides_agree_and_no_byte_is_lost() -> None:
    assert await converse("/a/1.0.0", {"/a/1.0.0"}) == (b"banner", ("/a/1.0.0", b""))


async def test_a_protocol_that_is_not_spoken() -> None:
    near, far = memory_stream_pair()
    await far.send_all(encode(MULTISTREAM) + encode("na"))
    with pytest.raises(NotSpoken):
        await select(near.receive_some, near.send_all, "/a/1.0.0")


@pytest.mark.parametrize("reply", [b"", encode("hello"), encode(MULTISTREAM) + encode("/b"), b"\x05\xff\xfe\xff\xfe\n"])
async def test_a_far_side_that_does_not_speak_multistream(reply: bytes) -> None:
    near, far = memory_stream_pair()
    await far.send_all(reply)
    await far.send_stream.aclose()
    with pytest.raises(NegotiationFailed):
        await select(near.receive_some, near.send_all, "/a/1.0.0")


async def test_a_token_that_is_no_text_is_only_a_protocol_we_do_not_speak() -> None:
    near, far = memory_stream_pair()
    await near.send_all(encode(MULTISTREAM) + b"\x05\xff\xfe\xff\xfe\n" + encode("/a/1.0.0") + b"more")
    agreed = await answer(far.receive_some, far.send_all, {"/a/1.0.0"}.__contains__)
    assert agreed == ("/a/1.0.0", b"more")
    assert await near.receive_some() == encode(MULTISTREAM) + encode("na") + encode("/a/1.0.0")


async def test_a_far_side_that_asks_for_ever_is_given_up() -> None:
    near, far = memory_stream_pair()
    await near.send_all(encode(MULTISTREAM) + encode("/no") * (MAX_OFFERS + 1))
    with pytest.raises(NegotiationFailed, match="asked for"):
        await answer(far.receive_some, far.send_all, lambda _: False)
