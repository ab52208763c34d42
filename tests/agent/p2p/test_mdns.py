"""Neighbours by multicast: what is announced, what is believed of it, and two hosts in a namespace that meet."""

from __future__ import annotations

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from twinshare.agent.p2p.libp2p.mdns import MdnsDiscovery, _by_peer, _lines, _service

from .hosts import open_echo
from .test_addresses import PEER, RELAY


def test_what_is_announced_is_what_is_read() -> None:
    addresses = [f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", f"/ip6/2001:db8::1/tcp/4001/p2p/{PEER}"]
    info = _service("a" * 16, addresses)
    assert list(_lines(info.text)) == addresses
    assert _by_peer(addresses) == {PEER: addresses}


def test_what_a_stranger_tells_is_sorted_by_whom_it_is_about() -> None:
    hints = [
        "nonsense",
        "/ip4/192.0.2.1/tcp/4001",
        f"/ip4/0.0.0.0/tcp/4001/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/0/p2p/{PEER}",
        f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",
        f"/ip4/192.0.2.2/tcp/2/p2p/{RELAY}",
    ]
    assert _by_peer(hints) == {PEER: [hints[4]], RELAY: [hints[5]]}
    assert len(_by_peer([hints[4]] * 100)[PEER]) == 8


@given(st.binary(max_size=300))
def test_any_bytes_are_lines_or_nothing(text: bytes) -> None:
    _by_peer(list(_lines(text)))


@pytest.mark.system
async def test_two_hosts_find_each_other() -> None:
    listen = "/ip4/0.0.0.0/tcp/0"
    async with open_echo(listen=listen) as one, open_echo(listen=listen) as other:
        if all("127.0.0.1" in address for address in one.addresses):
            pytest.skip("this machine has no network but loopback")
        send, receive = trio.open_memory_channel[tuple[str, str, list[str]]](100)
        async with trio.open_nursery() as nursery:
            for who, host in (("one", one), ("other", other)):
                tell = send.clone()
                nursery.start_soon(
                    MdnsDiscovery(host).run, lambda peer, its, who=who, tell=tell: tell.send_nowait((who, peer, its))
                )
            heard: dict[str, list[str]] = {}
            with trio.move_on_after(20):
                while {"one", "other"} - heard.keys():
                    who, peer, addresses = await receive.receive()
                    if peer in (one.peer_id, other.peer_id):  # there may be nodes of others on this network
                        heard[who] = addresses
            nursery.cancel_scope.cancel()
        if not heard:
            pytest.skip("this network carries no multicast")
        assert heard == {"one": list(other.addresses), "other": list(one.addresses)}
        await one.connect(other.peer_id, heard["one"])


async def test_a_machine_without_multicast_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(os.strerror(101))

    monkeypatch.setattr("twinshare.agent.p2p.libp2p.mdns._open", refuse)
    async with open_echo() as host:
        with trio.fail_after(30):
            await MdnsDiscovery(host).run(lambda *_: None)
