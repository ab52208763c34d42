"""Certificates, chains, revocations and tickets: each member decides alone, and all decide the same."""

import itertools
import random

import msgspec
import pytest

from twinshare.agent.p2p.membership import Membership, open_membership
from twinshare.agent.p2p.membership_view import Override
from twinshare.agent.p2p.signing import Signer, open_token
from twinshare.agent.p2p.store import MemoryKeyValueStore
from twinshare.protocols.access import Limits, Role
from twinshare.protocols.errors import Conflict, Forbidden, InvalidRequest, PeerMisbehaved, PeerNotFound
from twinshare.protocols.membership.statements import (
    LIFETIME,
    RENEW_BEFORE,
    Certificate,
    Chain,
    Revocation,
    SignedRevocation,
    read_certificate,
)
from twinshare.protocols.mesh import GossipUpdate

DAY = 86400


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


def signer(number: int) -> Signer:
    return Signer(bytes([number]) * 32)


class Fleet:
    """Some nodes and their clock; node 0 is the founder."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.nodes: list[Membership] = []
        self.shelves: list[MemoryKeyValueStore] = []

    async def add(self, overrides: dict[str, Override] | None = None) -> Membership:
        number = len(self.nodes)
        self.shelves.append(MemoryKeyValueStore())
        node = await open_membership(
            self.shelves[-1], signer(number + 1), f"node-{number}", overrides or {}, self.clock
        )
        self.nodes.append(node)
        return node

    async def join(self, inviter: Membership, role: Role = Role.ADMIN, limits: Limits | None = None) -> Membership:
        node = await self.add()
        chain = await inviter.issue(node.peer_id, node.name, role, limits or Limits())
        await node.adopt(inviter.fleet, chain, inviter.peer_id)
        await self.spread()
        return node

    async def spread(self) -> None:
        for one, other in itertools.permutations(self.nodes, 2):
            for update in one.everything():
                if one.fleet == other.fleet:
                    await other.learn(update)

    async def restart(self, number: int) -> Membership:
        node = self.nodes[number]
        self.nodes[number] = await open_membership(self.shelves[number], signer(number + 1), node.name, {}, self.clock)
        return self.nodes[number]


def valid_members(fleet: Fleet) -> list[set[str]]:
    return [
        {peer.sub for peer in node.peers if node.valid_certificate(peer.sub)} | {node.peer_id} for node in fleet.nodes
    ]


async def test_a_node_founds_its_own_fleet_and_is_alone_in_it() -> None:
    fleet = Fleet()
    node = await fleet.add()
    own = node.valid_certificate(node.peer_id)
    assert own is not None
    assert (own.fleet, own.role, node.alone) == (node.peer_id, Role.ADMIN, True)
    assert (await fleet.restart(0)).valid_certificate(node.peer_id) == own


async def test_members_know_each_other_by_certificates_alone_and_after_a_restart() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a)
    c = await fleet.join(b, Role.OPERATOR)
    everybody = {node.peer_id for node in (a, b, c)}
    assert valid_members(fleet) == [everybody] * 3
    for number in range(3):
        await fleet.restart(number)
    assert valid_members(fleet) == [everybody] * 3
    assert not c.alone
    who = a.valid_certificate(c.peer_id)
    assert who is not None
    assert (who.role, who.name) == (Role.OPERATOR, "node-2")


async def test_a_chain_is_at_most_three_long() -> None:
    fleet = Fleet()
    a = await fleet.add()
    d = await fleet.join(await fleet.join(await fleet.join(a)))
    assert a.valid_certificate(d.peer_id) is not None
    with pytest.raises(Forbidden, match="last of 3"):
        await d.issue(signer(99).peer_id, "x", Role.VIEWER, Limits())


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
async def test_only_admins_issue_and_revoke(role: Role) -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a, role)
    with pytest.raises(Forbidden, match="no admin"):
        await b.issue(signer(99).peer_id, "x", Role.VIEWER, Limits())
    with pytest.raises(Forbidden, match="no admin"):
        await b.revoke(a.peer_id)
    # What it signs all the same is not heard.
    child = Certificate(
        fleet=a.fleet,
        sub=signer(99).peer_id,
        name="x",
        role=Role.VIEWER,
        iat=int(fleet.clock.now),
        exp=int(fleet.clock.now) + DAY,
        serial="1",
    )
    chain = (signer(2).sign(msgspec.json.encode(child)), *own_chain(b))
    assert not await a.learn(GossipUpdate(members=[chain]))
    revocation = Revocation(fleet=a.fleet, sub=signer(99).peer_id, by=b.peer_id, iat=int(fleet.clock.now), number=1)
    signed = SignedRevocation(token=signer(2).sign(msgspec.json.encode(revocation)), chain=own_chain(b))
    assert not await a.learn(GossipUpdate(revocations=[signed]))


def own_chain(node: Membership) -> Chain:
    return next(
        chain
        for update in node.everything()
        for chain in update.members
        if read_certificate(chain[0], open_token).sub == node.peer_id
    )


async def test_a_child_never_exceeds_its_parent() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a, limits=Limits(vms=3, memory=4096))
    fleet.clock.now += 10 * DAY
    c = await fleet.join(b, limits=Limits(vms=10, disk=5))
    got, parent = a.valid_certificate(c.peer_id), a.valid_certificate(b.peer_id)
    assert got is not None
    assert parent is not None
    assert got.limits == Limits(vms=3, memory=4096, disk=5)
    assert got.exp == parent.exp
    for exceeding in (
        msgspec.structs.replace(got, exp=parent.exp + 1),
        msgspec.structs.replace(got, limits=Limits(vms=4, memory=4096)),
        msgspec.structs.replace(got, limits=Limits()),
    ):
        later = msgspec.structs.replace(exceeding, iat=got.iat + 1, seq=exceeding.seq + 1)
        chain = (signer(2).sign(msgspec.json.encode(later)), *own_chain(b))
        await a.learn(GossipUpdate(members=[chain]))
        known = a.valid_certificate(c.peer_id)
        assert known is not None
        assert known.exp <= parent.exp
        assert known.limits.within(parent.limits)
    other = msgspec.structs.replace(got, fleet=b.peer_id, seq=9)
    chain = (signer(2).sign(msgspec.json.encode(other)), *own_chain(b))
    assert not await a.learn(GossipUpdate(members=[chain]))


async def test_certificates_of_others_forged_reordered_or_damaged_are_not_taken() -> None:
    fleet, other = Fleet(), Fleet()
    a = await fleet.add()
    b = await fleet.join(a)
    other.nodes.append(a)
    stranger = await other.add()
    good = await a.issue(signer(50).peer_id, "x", Role.VIEWER, Limits())
    for chain in (
        (own_chain(stranger)),
        (good[0][:-3] + "abc",),
        ("",),
        ("a.b.c",),
        ("." * 4000,),
    ):
        assert not await b.learn(GossipUpdate(members=[chain]))
    # A chain only supports the statements in it, each of which is verified by itself.
    assert await b.learn(GossipUpdate(members=[(good[0], *own_chain(b))])) == GossipUpdate(members=[good])
    for chain in ((good[0], good[0]), (good[0], *own_chain(b)), good * 4):
        assert not await b.learn(GossipUpdate(members=[chain]))
    assert not await b.learn(GossipUpdate(members=[good]))


async def test_certificates_expire_and_any_admin_renews_them() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a)
    c = await fleet.join(b, Role.VIEWER)
    fleet.clock.now += LIFETIME - RENEW_BEFORE - 1
    assert not c.renewable
    fleet.clock.now += 2
    assert c.renewable
    with pytest.raises(Conflict):
        await b.renew(c.peer_id)
    await a.refound()
    await b.learn(GossipUpdate(members=[await a.renew(b.peer_id)]))
    await c.learn(GossipUpdate(members=[await b.renew(c.peer_id)]))
    await fleet.spread()
    fleet.clock.now += RENEW_BEFORE + DAY
    assert valid_members(fleet) == [{node.peer_id for node in fleet.nodes}] * 3
    renewed = a.valid_certificate(c.peer_id)
    assert renewed is not None
    assert renewed.role is Role.VIEWER
    fleet.clock.now += LIFETIME
    assert a.valid_certificate(c.peer_id) is None
    assert c.alone
    with pytest.raises(Forbidden):
        await b.renew(c.peer_id)
    assert (await fleet.restart(0)).valid_certificate(a.peer_id) is not None


async def test_a_revocation_takes_effect_everywhere_and_not_on_those_whom_the_revoked_let_in() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a)
    c = await fleet.join(b, Role.OPERATOR)
    await c.learn(await a.revoke(b.peer_id))
    assert valid_members(fleet)[0] == valid_members(fleet)[2] == {a.peer_id, c.peer_id}
    issued = await b.issue(signer(50).peer_id, "x", Role.VIEWER, Limits())
    assert not await c.learn(GossipUpdate(members=[issued])) or c.valid_certificate(signer(50).peer_id) is None
    c = await fleet.restart(2)
    assert c.valid_certificate(b.peer_id) is None
    # A new ticket lets it in again.
    await b.adopt(a.fleet, await a.issue(b.peer_id, "back", Role.VIEWER, Limits()), a.peer_id)
    await fleet.spread()
    assert c.valid_certificate(b.peer_id) is not None
    assert b.valid_certificate(b.peer_id) is not None


async def test_what_cannot_be_revoked() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.join(a)
    with pytest.raises(Forbidden, match="founder"):
        await b.revoke(a.peer_id)
    with pytest.raises(InvalidRequest):
        await b.revoke(b.peer_id)
    with pytest.raises(PeerNotFound):
        await b.revoke(signer(77).peer_id)


@pytest.mark.parametrize("seed", range(10))
async def test_admins_that_revoke_at_once_leave_all_with_the_same_view(seed: int) -> None:
    rng = random.Random(seed)
    fleet = Fleet()
    a = await fleet.add()
    for role in (Role.ADMIN, Role.ADMIN, Role.ADMIN, Role.OPERATOR, Role.VIEWER):
        await fleet.join(a, role)
    orders: list[GossipUpdate] = []
    for _ in range(6):
        fleet.clock.now += rng.randrange(3)
        by, whom = rng.sample(fleet.nodes[1:4], 1)[0], rng.choice(fleet.nodes[1:])
        if whom in fleet.nodes[4:]:
            orders.append(await by.revoke(whom.peer_id))
            continue
        # Equals cannot remove each other.
        with pytest.raises((Forbidden, InvalidRequest)):
            await by.revoke(whom.peer_id)
    for node in fleet.nodes:
        rng.shuffle(orders)
        for update in orders:
            await node.learn(update)
    views = {frozenset(p.sub for p in node.peers if node.valid_certificate(p.sub)) | {a.peer_id} for node in [a]}
    for node in fleet.nodes:
        view = {p.sub for p in node.peers if node.valid_certificate(p.sub)}
        views.add(frozenset(view | ({node.peer_id} if node.valid_certificate(node.peer_id) else set())))
    assert len(views) == 1
    assert {node.peer_id for node in fleet.nodes[:4]} <= set(*views)


async def test_this_nodes_own_configuration_can_only_lower() -> None:
    fleet = Fleet()
    b, c, d = (signer(number).peer_id for number in (2, 3, 4))
    a = await fleet.add(
        {
            b: Override(deny=True),
            c: Override(role=Role.VIEWER, limits=Limits(vms=1)),
            d: Override(role=Role.ADMIN, limits=Limits(vms=9)),
        }
    )
    for peer in (b, c):
        await a.issue(peer, "x", Role.ADMIN, Limits())
    await a.issue(d, "x", Role.VIEWER, Limits(vms=2))
    assert a.valid_certificate(b) is None
    lowered, same = a.valid_certificate(c), a.valid_certificate(d)
    assert lowered is not None
    assert same is not None
    assert (lowered.role, lowered.limits) == (Role.VIEWER, Limits(vms=1))
    assert (same.role, same.limits) == (Role.VIEWER, Limits(vms=2))


async def test_no_certificate_is_adopted_but_our_own_from_the_inviter() -> None:
    fleet = Fleet()
    a = await fleet.add()
    b = await fleet.add()
    for_b = await a.issue(b.peer_id, "b", Role.ADMIN, Limits())
    for_c = await a.issue(signer(50).peer_id, "c", Role.ADMIN, Limits())
    for fleet_id, chain, issuer in (
        (a.fleet, for_c, a.peer_id),
        (a.fleet, for_b, signer(50).peer_id),
        (b.fleet, for_b, a.peer_id),
        (a.fleet, ("junk",), a.peer_id),
    ):
        with pytest.raises(PeerMisbehaved):
            await b.adopt(fleet_id, chain, issuer)
    assert b.fleet == b.peer_id
    assert b.valid_certificate(b.peer_id) is not None
