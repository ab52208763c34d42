"""Addresses from strangers: what is one is understood, what is none is left out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.p2p.addresses import Address, Scope, expand, for_others, parse, parse_all, widest_scope

PEER = "12D3KooWJheqthvw6oiQECdWVPX5suceVD64LbqeQJRfX5WLQMCP"
RELAY = "12D3KooWQrueiE9CQ67HJ88xYHqzRzWAqaAJAt81H7mGE2hy4deq"

GOOD = [
    "/ip4/192.0.2.1/tcp/4001",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}",
    f"/ip6/2001:db8::1/tcp/0/p2p/{PEER}",
    f"/dns4/node-1.example.org/tcp/65535/p2p/{PEER}",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}/p2p-circuit/p2p/{PEER}",
    f"/dns/relay/tcp/1/p2p/{RELAY}/p2p-circuit",
]


@pytest.mark.parametrize("text", GOOD)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(parse(text)) == text


def test_the_parts_of_a_relayed_address() -> None:
    address = parse(GOOD[4])
    assert address == Address(kind="ip4", host="192.0.2.1", port=4001, relay=RELAY, peer_id=PEER)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "nonsense",
        "/ip4/192.0.2.1",
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/ip4/192.0.2.256/tcp/4001",
        "/ip4/2001:db8::1/tcp/4001",
        "/ip6/192.0.2.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.1/tcp/-1",
        "/ip4/192.0.2.1/tcp/١",
        "/ip4/192.0.2.1/tcp/1\n",
        "/ip4/192.0.2.1/tcp/4001/ws",
        "/ip4/192.0.2.1/tcp/4001/p2p",
        "/ip4/192.0.2.1/tcp/4001/p2p/",
        "/ip4/192.0.2.1/tcp/4001/p2p/not a peer",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/4001/p2p-circuit/p2p/{PEER}",
        f"/p2p/{PEER}",
        "/dns4/-bad/tcp/1",
        "/dns4/a b/tcp/1",
        "/unix/tmp/x/tcp/1",
        "/dns4/" + "a." * 300 + "/tcp/1",
    ],
)
def test_what_is_no_address_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert str(parse(text))


def test_of_many_hints_the_first_few_are_taken_once() -> None:
    hints = ["nonsense", GOOD[0], GOOD[0], GOOD[1], GOOD[2]]
    assert [str(address) for address in parse_all(hints, most=2)] == GOOD[:2]


def test_an_unspecified_address_stands_for_every_interface() -> None:
    interfaces = ["192.0.2.2", "198.51.100.7", "2001:db8::2"]
    every = expand([parse("/ip4/0.0.0.0/tcp/4001")], interfaces)
    assert [str(each) for each in every] == ["/ip4/192.0.2.2/tcp/4001", "/ip4/198.51.100.7/tcp/4001"]
    assert [each.host for each in expand([parse("/ip6/::/tcp/1")], interfaces)] == ["2001:db8::2"]
    assert [each.host for each in expand([parse("/ip4/0.0.0.0/tcp/1")], [])] == ["127.0.0.1"]
    assert expand([parse(GOOD[0])], interfaces) == [parse(GOOD[0])]
    assert parse("/ip4/127.0.0.1/tcp/1").loopback
    assert not parse("/dns/localhost/tcp/1").loopback


def test_the_loopback_is_an_address_only_where_there_is_no_other() -> None:
    both = [parse("/ip4/0.0.0.0/tcp/1"), parse("/ip6/::/tcp/2")]
    assert [each.host for each in expand(both, ["2001:db8::2"])] == ["2001:db8::2"]
    assert [each.host for each in expand(both, ["192.0.2.2"])] == ["192.0.2.2"]
    assert [each.host for each in expand(both, [])] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("/ip4/8.8.8.8/tcp/1", Scope.GLOBAL),
        ("/ip4/100.64.0.1/tcp/1", Scope.PRIVATE),
        ("/ip4/10.0.0.1/tcp/1", Scope.PRIVATE),
        ("/ip4/169.254.0.1/tcp/1", Scope.LINK),
        ("/ip4/127.0.0.2/tcp/1", Scope.MACHINE),
        ("/ip6/2a00::1/tcp/1", Scope.GLOBAL),
        ("/ip6/fd00::1/tcp/1", Scope.PRIVATE),
        ("/ip6/fe80::1/tcp/1", Scope.LINK),
        ("/ip6/::1/tcp/1", Scope.MACHINE),
        ("/dns4/node.example/tcp/1", Scope.GLOBAL),
    ],
)
def test_from_where_an_address_can_be_used(text: str, scope: Scope) -> None:
    assert parse(text).scope is scope
    assert widest_scope([text, "/ip4/127.0.0.1/tcp/1"]) is scope


def test_a_ticket_begins_with_the_best_address_of_each_way_in() -> None:
    relayed = f"/ip4/8.8.4.4/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{PEER}"
    given = [
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/172.17.0.1/tcp/1",
        "/ip4/192.168.1.5/tcp/1",
        "/ip4/8.8.8.8/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip6/2a00::1/tcp/1",
        relayed,
    ]
    assert for_others(f"{each}/p2p/{PEER}" if "circuit" not in each else each for each in given) == [
        "/ip4/8.8.8.8/tcp/1",
        "/ip6/2a00::1/tcp/1",
        relayed,
        "/ip4/172.17.0.1/tcp/1",
        "/ip6/fd00::1/tcp/1",
        "/ip4/192.168.1.5/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
    ]
    assert for_others(["/memory/1"]) == ["/memory/1"]
    assert widest_scope([]) is None
