"""Addresses, varints and messages in libp2p's binary forms, against libp2p's own code and against nonsense."""

from __future__ import annotations

from contextlib import suppress

import base58 as package
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr.multiaddr import Multiaddr
from trio.testing import memory_stream_one_way_pair

from twinshare.agent.p2p.addresses import parse
from twinshare.agent.p2p.libp2p.multiaddr_bytes import from_bytes, peer_id_from_bytes, peer_id_to_bytes, to_bytes
from twinshare.agent.p2p.libp2p.varint import BadMessage, MessageReader, decode_varint, encode_varint, write_message
from twinshare.protocols import base58

from .test_addresses import GOOD, PEER


@pytest.mark.parametrize("text", GOOD)
def test_the_bytes_are_those_of_the_library(text: str) -> None:
    data = to_bytes(parse(text))
    assert data == Multiaddr(text).to_bytes()
    assert from_bytes(data) == parse(text)


@settings(max_examples=500)
@given(st.binary(max_size=80))
def test_any_bytes_are_an_address_or_a_value_error(data: bytes) -> None:
    with suppress(ValueError):
        assert from_bytes(data).port >= 0
    with suppress(ValueError):
        assert peer_id_from_bytes(data)


def test_quic_and_cut_off_addresses_are_none() -> None:
    for data in (Multiaddr("/ip4/192.0.2.1/udp/4001/quic-v1").to_bytes(), to_bytes(parse(GOOD[1]))[:-1], b"", b"\x04"):
        with pytest.raises(ValueError, match=r"."):
            from_bytes(data)


def test_a_peer_id_and_its_bytes() -> None:
    assert peer_id_from_bytes(peer_id_to_bytes(PEER)) == PEER
    with pytest.raises(ValueError, match="ed25519"):
        peer_id_from_bytes(b"\x12\x20" + bytes(32))


@given(st.integers(0, 2**63 - 1))
def test_a_varint_comes_back(value: int) -> None:
    data = encode_varint(value)
    assert decode_varint(data) == (value, len(data))
    assert decode_varint(data[:-1]) is None


def test_a_varint_without_an_end() -> None:
    with pytest.raises(ValueError, match="without an end"):
        decode_varint(b"\xff" * 10)


async def test_messages_follow_each_other_in_any_pieces() -> None:
    send, receive = memory_stream_one_way_pair()
    for number in range(3):
        await write_message(send, Identify(agent_version=f"agent {number}"))
    wire = await receive.receive_some()
    for at in range(0, len(wire), 5):
        await send.send_all(wire[at : at + 5])
    await send.aclose()
    reader, got = MessageReader(receive), []
    while (message := await reader.read(Identify())) is not None:
        got.append(message.agent_version)
    assert got == ["agent 0", "agent 1", "agent 2"]


@pytest.mark.parametrize("wire", [b"\xff\xff\xff\x7f", b"\xff" * 12, b"\x05\xff\xff\xff\xff\xff", b"\x05abc"])
async def test_what_is_no_message_is_refused(wire: bytes) -> None:
    send, receive = memory_stream_one_way_pair()
    await send.send_all(wire)
    await send.aclose()
    with trio.fail_after(30), pytest.raises(BadMessage):
        await MessageReader(receive).read(Identify())


@given(data=st.binary(max_size=64))
def test_base58_is_the_packages(data: bytes) -> None:
    text = package.b58encode(data).decode()
    assert base58.encode(data) == text
    assert base58.decode(text) == package.b58decode(text) == data
