"""Noise framing: any size in any pieces, nothing that was not sealed by the far side."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from twinshare.agent.p2p.libp2p import noise
from twinshare.agent.p2p.libp2p.noise import MAX_PLAINTEXT, CipherKeys, Opener, Sealer, SecureChannel
from twinshare.agent.p2p.libp2p.pacing import UNBOUNDED, BulkRoom
from twinshare.agent.p2p.libp2p.pipe import PipeBroken

KEY = bytes(range(32))


def _opened(opener: Opener, data: bytes) -> bytes:
    opener.feed(data)
    return b"".join(iter(opener.next_plaintext, None))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3 * MAX_PLAINTEXT), max_size=6),
    st.lists(st.integers(1, 200_000), min_size=1, max_size=10),
)
def test_any_sizes_sealed_and_opened_in_any_pieces(sizes: list[int], cuts: list[int]) -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    plain = [bytes(i % 256 for i in range(size % 256)) + bytes(size - size % 256) for size in sizes]
    wire = b"".join(bytes(sealer.seal(data)) for data in plain)
    opened = bytearray()
    at = turn = 0
    while at < len(wire):
        cut = cuts[turn % len(cuts)]
        opened += _opened(opener, wire[at : at + cut])
        at, turn = at + cut, turn + 1
    assert opened == b"".join(plain)
    assert not opener.midway


def test_the_stock_library_reads_what_we_seal_and_we_what_it_seals() -> None:
    ends = [NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256") for _ in range(2)]
    for number, (end, role) in enumerate(zip(ends, ("set_as_initiator", "set_as_responder"), strict=True)):
        end.set_keypair_from_private_bytes(Keypair.STATIC, bytes([number + 1] * 32))
        getattr(end, role)()
        end.start_handshake()
    for writer, reader in ((0, 1), (1, 0), (0, 1)):
        ends[reader].read_message(ends[writer].write_message())
    sealer = Sealer(ends[0].noise_protocol.cipher_state_encrypt.k)
    opener = Opener(ends[0].noise_protocol.cipher_state_decrypt.k)
    for text in (b"one", b"two", b"three" * 1000):
        assert ends[1].decrypt(bytes(sealer.seal(text))[2:]) == text
        sealed = ends[1].encrypt(text)
        assert _opened(opener, len(sealed).to_bytes(2, "big") + sealed) == text


@pytest.mark.parametrize("flip", [2, 10, -1])
def test_a_flipped_bit_is_refused(flip: int) -> None:
    wire = bytearray(Sealer(KEY).seal(b"hello"))
    wire[flip] ^= 1
    with pytest.raises(PipeBroken, match="did not seal"):
        _opened(Opener(KEY), bytes(wire))


def test_a_replayed_message_is_refused() -> None:
    wire = bytes(Sealer(KEY).seal(b"hello"))
    opener = Opener(KEY)
    _opened(opener, wire)
    with pytest.raises(PipeBroken):
        _opened(opener, wire)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=10))
def test_random_bytes_are_refused_or_waited_for(chunks: list[bytes]) -> None:
    opener = Opener(KEY)
    try:
        for chunk in chunks:
            assert _opened(opener, chunk) == b""
    except PipeBroken:
        pass


class _Scripted:
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.sent = b""

    async def receive(self) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""

    async def send(self, data: bytes | bytearray) -> None:
        self.sent += data

    def bulk_room(self) -> BulkRoom:
        return BulkRoom(UNBOUNDED)

    def close(self) -> None: ...


async def test_an_end_amid_a_message_is_no_clean_end() -> None:
    wire = bytes(Sealer(KEY).seal(b"hello"))
    channel = SecureChannel(_Scripted(wire, wire[:4]), CipherKeys(KEY, KEY))
    assert await channel.receive() == b"hello"
    with pytest.raises(PipeBroken, match="middle of a message"):
        await channel.receive()


async def test_bytes_that_came_with_the_handshake_are_opened_first() -> None:
    wire = bytes(Sealer(KEY).seal(b"hello"))
    channel = SecureChannel(_Scripted(wire[3:]), CipherKeys(KEY, KEY), wire[:3])
    assert await channel.receive() == b"hello"
    assert await channel.receive() == b""


async def test_messages_of_no_byte_leave_other_tasks_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "TURN", 0.0)
    sealer, turns = Sealer(KEY), 0
    channel = SecureChannel(_Scripted(b"".join(bytes(sealer.seal(b"")) for _ in range(1000))), CipherKeys(KEY, KEY))

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        assert await channel.receive() == b""
        nursery.cancel_scope.cancel()
    assert turns >= 500
