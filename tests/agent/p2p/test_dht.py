"""The fleet's table: pure lookups over drawn networks, records that are not believed, and real hosts on loopback."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record

from tests.stopwatch import within
from twinshare.agent.p2p.libp2p.dht import DHT, Dht, open_dht
from twinshare.agent.p2p.libp2p.dht.store import KEPT, MAX_RECORDS, MAX_VALUE, RecordStore
from twinshare.agent.p2p.libp2p.dht.table import (
    MAX_ASKED,
    Contact,
    Lookup,
    RoutingTable,
    nearest,
    place,
    place_of_peer,
)
from twinshare.agent.p2p.libp2p.host import LibP2pHost
from twinshare.agent.p2p.libp2p.varint import MessageReader, write_message
from twinshare.agent.p2p.records import make_record, number_of, read_record, record_key
from twinshare.agent.p2p.signing import Signer
from twinshare.protocols.base58 import peer_id_of
from twinshare.protocols.mesh import PeerRecord

from .hosts import open_echo, until


def names(rng: random.Random, number: int) -> list[str]:
    return [peer_id_of(rng.randbytes(32)) for _ in range(number)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 80), st.floats(0, 0.4))
def test_a_lookup_ends_at_the_nearest_that_live(seed: int, size: int, dead_share: float) -> None:
    rng = random.Random(seed)
    peers = names(rng, size)
    dead = {peer for peer in peers[1:] if rng.random() < dead_share}
    tables = {peer: RoutingTable(peer) for peer in peers}
    for table in tables.values():
        for other in rng.sample(peers, min(size, 40)):
            table.add(Contact(other))
    target = place(rng.randbytes(8))
    own = peers[0]
    lookup = Lookup(own, target, tables[own].nearest(target))
    while not lookup.over:
        for contact in lookup.next():
            if contact.peer_id in dead:
                lookup.failed(contact.peer_id)
            else:
                lookup.answered(contact.peer_id, tables[contact.peer_id].nearest(target))
    found = [contact.peer_id for contact in lookup.found]
    assert not set(found) & dead
    assert own not in found
    known = {peer for peer in lookup._known if peer not in dead}
    if len(lookup._asked) < MAX_ASKED:
        assert found == [each.peer_id for each in nearest([Contact(peer) for peer in known], target)]


def test_a_lookup_among_liars_ends() -> None:
    """Each answer names peers that nobody has heard of, nearer and nearer."""
    rng = random.Random(3)
    own, *seeds = names(rng, 5)
    lookup = Lookup(own, place(b"x"), [Contact(peer) for peer in seeds])
    asked = 0
    while not lookup.over:
        for contact in lookup.next():
            asked += 1
            lookup.answered(contact.peer_id, [Contact(peer) for peer in names(rng, 200)])
    assert 4 < asked <= MAX_ASKED


def test_a_full_bucket_keeps_whom_it_knows() -> None:
    rng = random.Random(1)
    own = names(rng, 1)[0]
    table = RoutingTable(own)
    for peer in names(rng, 2000):
        table.add(Contact(peer))
    far = [peer for peer in names(rng, 100) if not table.add(Contact(peer))]
    assert len(far) > 50
    assert len(table) < 20 * 12
    assert not table.add(Contact(own))
    gone = table.nearest(place(b"x"), 1)[0].peer_id
    table.remove(gone)
    assert gone not in [each.peer_id for each in table.nearest(place_of_peer(gone))]


NOW = 1.7e9


def own_record(signer: Signer, number: int, peer: str | None = None) -> PeerRecord:
    return PeerRecord(peer=peer or signer.peer_id, addresses=["/ip4/192.0.2.1/tcp/4001"], number=number)


def test_only_a_peers_own_word_is_a_record() -> None:
    one, other = Signer(bytes([1] * 32)), Signer(bytes([2] * 32))
    key = record_key(one.peer_id)
    good = make_record(one, own_record(one, 7))
    assert read_record(key, good).number == number_of(key, good, NOW) == 7
    bad = [
        make_record(other, own_record(one, 8)),
        make_record(one, own_record(one, 8, other.peer_id)),
        good[:-2],
        good + b"x",
        b"",
        b"\xff\xfe",
        os.urandom(200),
        good.replace(b".", b"", 1),
    ]
    assert [number_of(key, value, NOW) for value in bad] == [None] * len(bad)
    assert number_of(record_key(other.peer_id), good, NOW) is None
    assert number_of(b"/other/" + one.peer_id.encode(), good, NOW) is None
    assert number_of(b"\xff", good, NOW) is None


def test_the_store_keeps_what_is_valid_and_newest_and_little_of_it() -> None:
    store = RecordStore(lambda _, value: int(value) if value.isdigit() else None)
    assert store.put(b"k", b"2", 0.0)
    assert not store.put(b"k", b"1", 0.0)
    assert not store.put(b"k", b"nonsense", 0.0)
    assert store.get(b"k", 1.0) == b"2"
    assert store.get(b"k", KEPT + 1) is None
    assert not store.put(b"k" * 1000, b"1", 0.0)
    assert not store.put(b"big", b"1" * (MAX_VALUE + 1), 0.0)
    for number in range(MAX_RECORDS + 10):
        store.put(f"{number}".encode(), b"1", 10.0)
    assert len(store) == MAX_RECORDS
    assert store.put(b"later", b"1", KEPT + 20)
    assert len(store) == 1


@asynccontextmanager
async def open_fleet(number: int) -> AsyncIterator[tuple[Sequence[LibP2pHost], Sequence[Dht], Sequence[Signer]]]:
    """A chain: each node is connected with the one before it and has heard of no other."""
    seeds = [os.urandom(32) for _ in range(number)]
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(open_echo(seed=seed)) for seed in seeds]
        tables = [await stack.enter_async_context(open_dht(host, partial(number_of, now=NOW))) for host in hosts]
        for one, other in pairwise(hosts):
            await other.connect(one.peer_id, one.addresses)
        for place_in_chain, table in enumerate(tables):
            neighbours = 1 if place_in_chain in (0, number - 1) else 2
            await until(lambda table=table, least=neighbours: table.size >= least)
        yield hosts, tables, [Signer(seed) for seed in seeds]


async def test_a_record_is_found_at_the_other_end_of_a_chain() -> None:
    async with open_fleet(6) as (hosts, tables, signers):
        key = record_key(signers[0].peer_id)
        first = make_record(signers[0], own_record(signers[0], 1))
        assert await tables[0].put(key, first) >= 1
        assert await tables[5].get(key) == first
        second = make_record(signers[0], own_record(signers[0], 2))
        await tables[0].put(key, second)
        assert await tables[5].get(key) == second
        found = await tables[5].find_peer(hosts[0].peer_id)
        assert hosts[0].addresses[0].rpartition("/p2p/")[0] in [each.rpartition("/p2p/")[0] or each for each in found]
        assert await tables[5].get(record_key(signers[3].peer_id)) is None


async def test_a_dead_node_costs_a_lookup_its_timeout_and_no_more() -> None:
    async with open_fleet(4) as (hosts, tables, signers):
        key = record_key(signers[0].peer_id)
        await tables[0].put(key, make_record(signers[0], own_record(signers[0], 1)))
        await tables[3].refresh()
        await hosts[1].swarm.aclose()
        with within(10):
            assert await tables[3].get(key) is not None


@pytest.mark.parametrize(
    "question",
    [
        Message(type=Message.PUT_VALUE, key=b"/twinshare/x", record=Record(key=b"/twinshare/x", value=b"unsigned")),
        Message(type=Message.PUT_VALUE, key=b"/other/x", record=Record(key=b"/other/x", value=b"no such namespace")),
        Message(type=Message.PUT_VALUE, key=b"a", record=Record(key=b"b", value=b"two keys")),
        Message(type=Message.ADD_PROVIDER, key=b"x"),
        Message(type=Message.GET_PROVIDERS, key=b"x"),
    ],
)
async def test_what_is_not_kept_ends_the_stream(question: Message) -> None:
    async with open_fleet(2) as (hosts, tables, _):
        stream = await hosts[0].open_stream(hosts[1].peer_id, DHT)
        await write_message(stream, question)
        with within(2), pytest.raises(trio.BrokenResourceError):
            await MessageReader(stream).read(Message())
        assert await tables[0].get(question.key) is None


async def test_an_answer_that_lies_is_not_believed() -> None:
    """The neighbour serves a forged record and peers that do not exist."""
    async with open_fleet(2) as (hosts, tables, signers):
        key = record_key(signers[0].peer_id)
        forged = make_record(signers[1], own_record(signers[0], 99))
        liars = [Message.Peer(id=os.urandom(38), addrs=[os.urandom(8)]) for _ in range(50)]

        async def lie(stream: trio.abc.HalfCloseableStream) -> None:
            await MessageReader(stream).read(Message())
            answer = Message(type=Message.GET_VALUE, key=key, record=Record(key=key, value=forged), closerPeers=liars)
            await write_message(stream, answer)

        hosts[1].serve(DHT, lie)
        assert await tables[0].get(key) is None
