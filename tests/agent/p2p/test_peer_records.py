"""Peer records: signed by their subject, numbered within the clock; and what is dialled on the word of others.

The numbers are those of the list of faults: A10, B2.
"""

from __future__ import annotations

import msgspec
import pytest
from trio.testing import MockClock

from tests.agent.p2p.test_membership_faults import DAY, gossip
from twinshare.agent.p2p.address_book import AddressBook, Origin, open_address_book
from twinshare.agent.p2p.dial_policy import DIALS_AT_ONCE, DIALS_PER_HOUR, DialPolicy
from twinshare.agent.p2p.records import make_record, open_own_record, read_record, record_key, verified
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.p2p.store import MemoryKeyValueStore
from twinshare.agent.simulation import SimulatedNode, now, open_cluster
from twinshare.protocols.access import Role
from twinshare.protocols.mesh import GossipUpdate, PeerRecord

SUBJECT, OTHER = Signer(b"s" * 32), Signer(b"o" * 32)
NOW = 1_700_000_000.0
LAN = "/ip4/192.168.1.9/tcp/4001"


def record(number: float, *addresses: str, signer: Signer | None = SUBJECT, peer: str = "") -> PeerRecord:
    unsigned = PeerRecord(peer=peer or SUBJECT.peer_id, addresses=list(addresses) or [LAN], number=int(number))
    token = make_record(signer, unsigned).decode() if signer else ""
    return msgspec.structs.replace(unsigned, token=token)


def known_addresses(node: SimulatedNode, peer: SimulatedNode) -> list[str]:
    [found] = [r.addresses for r in node.mesh.context.address_book.peer_records() if r.peer == peer.peer_id]
    return found


async def test_a10_a_viewer_moves_nobody(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        target, victim, _ = cluster.nodes
        viewer = await cluster.add()
        await cluster.join(viewer, target, Role.VIEWER)
        await cluster.until(cluster.converged, 30)
        before = known_addresses(target, victim)
        for signer, number in (
            (None, 2**63 - 1),
            (viewer.signer, 2**63 - 1),
            (viewer.signer, now().timestamp() * 1000),
        ):
            lie = record(number, "/ip4/10.9.9.9/tcp/22", signer=signer, peer=victim.peer_id)
            await gossip(target, viewer, GossipUpdate(records=[lie]))
        assert known_addresses(target, victim) == before
        for _ in range(2):
            await cluster.kill(1)
            await cluster.start(1)
            await cluster.until(cluster.converged, 30)
        assert known_addresses(target, victim) == [
            address.partition("/p2p/")[0] for address in victim.mesh.require_running().host.addresses
        ]


async def test_signed_records_reach_those_who_never_met_their_subject(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        cluster.network.cut(cluster[0].peer_id, cluster[1].peer_id)
        await cluster.until(lambda: cluster[1].peer_id not in cluster[0].online, 60)
        await cluster.kill(1)
        await cluster.start(1)
        moved = [a.partition("/p2p/")[0] for a in cluster[1].mesh.require_running().host.addresses]
        await cluster.until(lambda: known_addresses(cluster[0], cluster[1]) == moved, 60)
        assert all(verified(r) for r in cluster[0].mesh.context.address_book.peer_records())


async def test_b2_a_record_of_a_wrong_clock_is_outlived_at_once(autojump_clock: MockClock) -> None:
    """The node that met the subject passes its records on; all three believe what it says once its clock is right."""
    async with open_cluster(3) as cluster:
        for clock in (2 * DAY, 0.0):
            await cluster.kill(1)
            cluster[1].clock = clock
            await cluster.start(1)
            await cluster.until(cluster.converged, 30)
        numbers = [r.number for r in cluster[2].mesh.context.address_book.peer_records()]
        assert max(numbers) <= (now().timestamp() + 300) * 1000


async def book() -> AddressBook:
    return await open_address_book(MemoryKeyValueStore(), (), lambda: NOW)


async def test_numbers_are_bounded_by_the_clock_and_first_hand_word_wins() -> None:
    addresses, here = await book(), NOW * 1000
    assert not await addresses.declare(record(here + 301_000))
    assert await addresses.declare(record(here + 299_000, "/ip4/10.0.0.1/tcp/4001"))
    assert not await addresses.declare(record(here + 1, "/ip4/10.0.0.2/tcp/4001"))
    assert await addresses.declare(record(here + 1, "/ip4/10.0.0.3/tcp/4001", signer=None), first_hand=True)
    assert addresses.addresses(SUBJECT.peer_id) == ["/ip4/10.0.0.3/tcp/4001"]
    assert await addresses.declare(record(2**63 - 1, "/ip4/10.0.0.4/tcp/4001", signer=None), first_hand=True)
    assert await addresses.declare(record(here + 2, "/ip4/10.0.0.5/tcp/4001"))
    assert not await addresses.declare(record(here + 2, "/ip4/10.0.0.6/tcp/4001"))
    assert addresses.addresses(SUBJECT.peer_id) == ["/ip4/10.0.0.5/tcp/4001"]


async def test_what_an_older_version_stored_with_a_forged_number_gives_way() -> None:
    store = MemoryKeyValueStore()
    poisoned = msgspec.msgpack.encode({"declared": record(2**63 - 1, signer=None), "good": []})
    await store.put("address", SUBJECT.peer_id, poisoned)
    addresses = await open_address_book(store, (), lambda: NOW)
    assert await addresses.declare(record(NOW * 1000, "/ip4/10.0.0.5/tcp/4001"))


async def test_the_own_number_grows_over_restarts_and_heals() -> None:
    store, clock = MemoryKeyValueStore(), [NOW]
    numbers = []
    for ahead in (0.0, -DAY, -DAY, 200.0, 0.0, 5 * DAY, 0.0, 1.0):
        clock[0] = NOW + ahead
        own = await open_own_record(SUBJECT, store, lambda: clock[0])
        numbers.append(own.current([LAN]).number)
        assert own.signed([LAN]).number == numbers[-1]
        assert own.current([LAN]).token
        await own.save()
    here = int(NOW * 1000)
    ahead_by = 5 * DAY * 1000
    # A stored number that is too far ahead for others counts as none.
    past = here - DAY * 1000
    assert numbers == [
        here, past, past + 1, here + 200_000, here + 200_001, here + ahead_by, here, here + 1000,
    ]  # fmt: skip


def test_a_record_is_its_subjects_own_word() -> None:
    good = record(7)
    assert verified(good) == read_record(record_key(SUBJECT.peer_id), good.token.encode()) == good
    assert verified(record(7, signer=OTHER)) is None
    assert verified(record(7, signer=None)) is None
    assert verified(msgspec.structs.replace(good, peer=OTHER.peer_id)) is None
    altered = verified(msgspec.structs.replace(good, addresses=["/ip4/10.9.9.9/tcp/22"], number=9))
    assert altered == good, "what was signed counts, not what stands beside it"


@pytest.mark.parametrize(
    ("address", "hint", "declared", "in_a_lab"),
    [
        ("/ip4/192.168.1.9/tcp/4001", True, True, True),
        ("/ip4/203.0.113.9/tcp/443", False, True, False),
        ("/ip4/203.0.113.9/tcp/22", False, True, False),
        ("/ip4/127.0.0.1/tcp/4001", False, False, True),
        ("/ip6/::1/tcp/4001", False, False, True),
        ("/ip6/::ffff:127.0.0.1/tcp/4001", False, False, True),
        ("/ip4/127.0.0.1/tcp/25", False, False, False),
        ("/ip4/169.254.169.254/tcp/8080", False, False, False),
        ("/ip4/192.0.0.192/tcp/8080", False, False, False),
        ("/ip4/168.63.129.16/tcp/32526", False, False, False),
        ("/ip6/fd00:ec2::254/tcp/8080", False, False, False),
        ("/ip4/169.254.7.7/tcp/4001", False, False, False),
        ("/ip6/fe80::1/tcp/4001", False, False, False),
        ("/ip4/0.0.0.0/tcp/4001", False, False, False),
        ("/ip4/224.0.0.9/tcp/4001", False, False, False),
        ("/dns4/internal.example/tcp/4001", False, False, False),
        (f"/ip4/169.254.169.254/tcp/8080/p2p/{OTHER.peer_id}/p2p-circuit", False, False, False),
        (f"/ip4/198.51.100.2/tcp/80/p2p/{OTHER.peer_id}/p2p-circuit", False, True, False),
    ],
)
def test_what_is_dialled_on_whose_word(address: str, hint: bool, declared: bool, in_a_lab: bool) -> None:
    outside = ["/ip4/192.168.1.2/tcp/4001"]
    for origin, own, allowed in (
        (Origin.HINT, outside, hint),
        (Origin.DECLARED, outside, declared),
        (Origin.HINT, ["/ip4/127.0.0.1/tcp/5000"], in_a_lab),
        (Origin.REACHED, outside, True),
        (Origin.CONFIGURED, outside, True),
    ):
        assert DialPolicy().choose([(address, origin)], own, 0.0) == ([address] if allowed else [])


def test_dials_of_one_target_are_bounded_whoever_is_said_to_be_there() -> None:
    policy = DialPolicy()
    dialled = sum(len(policy.choose([(LAN, Origin.DECLARED)], [], second / 10)) for second in range(36_000))
    assert DIALS_PER_HOUR <= dialled <= DIALS_PER_HOUR + DIALS_AT_ONCE
    assert policy.choose([("/ip4/192.168.1.9/tcp/4002", Origin.DECLARED)], [], 3600.0)
    assert policy.choose([(LAN, Origin.CONFIGURED)], [], 3600.0) == [LAN]
