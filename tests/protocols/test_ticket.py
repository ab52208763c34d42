"""Tickets survive a chat, or say that they did not."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols import base58
from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.ticket import TicketContent, decode_ticket, encode_ticket

ADDRESSES = ("/ip4/192.168.1.20/tcp/4001", "/ip6/2001:db8::1/tcp/4001", "/dns4/node.example.org/tcp/4001")
TICKET = TicketContent(
    inviter=base58.peer_id_of(bytes(range(32))),
    id=b"ticket",
    secret=b"s" * 16,
    expires=1_900_000_000,
    addresses=ADDRESSES,
)


@given(st.binary(max_size=80))
def test_base58_gives_back_what_it_was_given(data: bytes) -> None:
    assert base58.decode(base58.encode(data)) == data


def test_peer_ids_are_libp2ps() -> None:
    assert base58.peer_id_of(bytes(32)).startswith("12D3KooW")
    assert base58.public_key_of(base58.peer_id_of(bytes(range(32)))) == bytes(range(32))
    for wrong in ("", "12D3KooW", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "0" * 52, "1" * 5000):
        with pytest.raises(ValueError):
            base58.public_key_of(wrong)


def test_a_ticket_is_short_and_whole_again_after_a_chat_has_broken_its_lines() -> None:
    text = encode_ticket(dataclasses.replace(TICKET, addresses=ADDRESSES[:1]))
    assert len(text) < 110
    assert text.isalnum()
    text = encode_ticket(TICKET)
    assert decode_ticket(f"  {text[:40]}\n{text[40:]}\r\n") == TICKET


@given(st.integers(0, 200), st.sampled_from(base58.ALPHABET))
def test_one_wrong_character_is_noticed(where: int, character: str) -> None:
    text = encode_ticket(TICKET)
    where %= len(text)
    wrong = text[:where] + character + text[where + 1 :]
    if wrong != text:
        with pytest.raises(InvalidRequest, match="character is wrong"):
            decode_ticket(wrong)


@given(st.text(max_size=300))
def test_what_is_no_ticket_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no ticket"):
        decode_ticket(text)


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_part_is_not_the_whole(cut: int) -> None:
    with pytest.raises(InvalidRequest):
        decode_ticket(encode_ticket(TICKET)[:-cut])


@given(
    st.lists(
        st.one_of(
            st.ip_addresses(v=4).map(lambda ip: f"/ip4/{ip}/tcp/4001"),
            st.ip_addresses(v=6).map(lambda ip: f"/ip6/{ip}/tcp/65535"),
            st.text("abc/.é", max_size=40),
        ),
        max_size=4,
    )
)
def test_any_addresses_travel(addresses: list[str]) -> None:
    ticket = dataclasses.replace(TICKET, addresses=tuple(addresses))
    assert decode_ticket(encode_ticket(ticket)) == ticket


def test_a_proof_is_good_for_one_side_two_peers_and_two_nonces() -> None:
    proofs = {
        TICKET.proof("joiner", "j", b"1", b"2"),
        TICKET.proof("inviter", "j", b"1", b"2"),
        TICKET.proof("joiner", "k", b"1", b"2"),
        TICKET.proof("joiner", "j", b"12", b""),
        TICKET.proof("joiner", "j", b"2", b"1"),
        dataclasses.replace(TICKET, secret=b"t" * 16).proof("joiner", "j", b"1", b"2"),
    }
    assert len(proofs) == 6
