"""What members did to each other, or their own clocks to them, each seen once on real nodes; none of it works any more.

The numbers are those of the list of faults: A1, A2, A8, A16, B1, B2, B7, E7.
"""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.limits import Meter
from twinshare.agent.p2p.offload import in_place
from twinshare.agent.p2p.signing import Signer, open_token
from twinshare.agent.p2p.verification import Verifier
from twinshare.agent.simulation import Cluster, SimulatedNode, now, open_cluster
from twinshare.protocols.access import Role
from twinshare.protocols.errors import Conflict, Forbidden, InvalidRequest, RateLimited
from twinshare.protocols.membership.statements import (
    LIFETIME,
    Certificate,
    Chain,
    Revocation,
    SignedRevocation,
    is_label,
    read_certificate,
)
from twinshare.protocols.mesh import GossipUpdate
from twinshare.protocols.peer import InviteRequest

DAY = 86400


def time() -> int:
    return int(now().timestamp())


def chain_of(node: SimulatedNode) -> Chain:
    """A node's own certificates, as it would send them."""
    chains = [c for update in node.mesh.context.membership.everything() for c in update.members]
    return next(c for c in chains if read_certificate(c[0], open_token).sub == node.peer_id)


async def gossip(target: SimulatedNode, source: SimulatedNode, update: GossipUpdate) -> None:
    """A member sends what it likes."""
    await target.mesh.require_running().gossip.take(update, source.peer_id)


def forged(issuer: SimulatedNode, sub: str, fleet: str, role: Role, iat: int, *, numbered: bool) -> str:
    claims = Certificate(
        fleet=fleet, sub=sub, name="x", role=role, iat=iat, exp=time() + LIFETIME - 60, serial="z" * 16,
        issuer=issuer.peer_id if numbered else "", seq=99 if numbered else 0,
    )  # fmt: skip
    return issuer.signer.sign(msgspec.json.encode(claims))


@pytest.mark.parametrize(("numbered", "ahead"), [*itertools.product((False, True), (0, 250, 400 * DAY))])
async def test_a1_no_certificate_about_the_founder_harms_it(
    autojump_clock: MockClock, numbered: bool, ahead: int
) -> None:
    async with open_cluster(3) as cluster:
        founder, admin, other = cluster.nodes
        viewer = await cluster.add()
        await cluster.join(viewer, founder, Role.VIEWER)
        fleet, chain = founder.peer_id, chain_of(admin)
        token = forged(admin, founder.peer_id, fleet, Role.VIEWER, time() + ahead, numbered=numbered)
        for target in (founder, other, viewer):
            await gossip(target, admin, GossipUpdate(members=[(token, *chain)]))
        await founder.call("revoke_peer", peer=admin.peer_id)
        later = forged(admin, founder.peer_id, fleet, Role.VIEWER, time() + ahead + 1, numbered=numbered)
        for target in (founder, other):
            await gossip(target, viewer, GossipUpdate(members=[(later, *chain)]))
        for number in (0, 2):
            await cluster.kill(number)
            await cluster.start(number)
        for node in (founder, other, viewer):
            found = node.mesh.context.membership.valid_certificate(founder.peer_id)
            assert found is not None
            assert found.role is Role.ADMIN
        await founder.call("invite_peer", invite=InviteRequest())


async def test_a2_invented_revocations_keep_nobody_from_being_revoked(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        founder, admin, victim = cluster.nodes
        chain, fleet = chain_of(admin), founder.peer_id
        flood = []
        for number in range(1200):
            sub = Signer(b"none" + number.to_bytes(28, "big")).peer_id
            claims = Revocation(fleet=fleet, sub=sub, by=admin.peer_id, iat=time(), number=number + 1, seq=number + 9)
            flood.append(SignedRevocation(token=admin.signer.sign(msgspec.json.encode(claims)), chain=chain))
        for start in range(0, len(flood), 100):
            await gossip(founder, admin, GossipUpdate(revocations=flood[start : start + 100]))
        await founder.call("revoke_peer", peer=victim.peer_id)
        await founder.call("revoke_peer", peer=admin.peer_id)
        for peer in (victim, admin):
            assert founder.mesh.context.membership.valid_certificate(peer.peer_id) is None
        kept = sum(len(u.revocations) for u in founder.mesh.context.membership.everything())
        assert kept <= 1024 + 64 + 2


async def test_a2_what_one_peer_can_have_verified_is_bounded() -> None:
    clock = [0.0]
    verifier = Verifier(in_place, Meter(clock=lambda: clock[0]))

    def junk(turn: int) -> GossipUpdate:
        return GossipUpdate(members=[(f"eyJraWQiOiJ4In0.{turn}.{number}",) for number in range(100)])

    for turn in range(2):
        assert await verifier.read(junk(turn), (), "peer") == []
    with pytest.raises(RateLimited) as refused:
        await verifier.read(junk(2), (), "peer")
    assert await verifier.read(junk(3), (), "another") == []
    clock[0] += refused.value.details["retry_after"]
    assert await verifier.read(junk(2), (), "peer") == []


async def test_a8_a_revoked_peer_comes_in_by_no_ticket_made_before(autojump_clock: MockClock) -> None:
    async with open_cluster(1) as cluster:
        founder, joiner = cluster[0], await cluster.add()
        old = await founder.call("invite_peer", invite=InviteRequest(uses=5))
        await joiner.call("join_fleet", ticket=old.ticket)
        await cluster.until(cluster.converged, 10)
        await founder.call("revoke_peer", peer=joiner.peer_id)
        with pytest.raises(Forbidden, match="revoked since the ticket was made"):
            await joiner.call("join_fleet", ticket=old.ticket)
        assert joiner.peer_id not in {peer.id for peer in await founder.call("list_peers")}
        # Others may still use it; the peer itself needs a new one.
        other = await cluster.add()
        await other.call("join_fleet", ticket=old.ticket)
        new = await founder.call("invite_peer", invite=InviteRequest())
        await joiner.call("join_fleet", ticket=new.ticket)
        assert joiner.peer_id in {peer.id for peer in await founder.call("list_peers")}


async def test_a_node_that_joins_stays_connected_when_other_members_change_meanwhile(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its single ticket is used up, and its certificate not yet signed: it was hung up on then."""
    async with open_cluster(2) as cluster:
        founder, joiner = cluster[0], await cluster.add()
        membership = founder.mesh.context.membership
        issue = membership.issue

        async def slowly(*arguments: Any) -> Chain:
            founder.mesh.require_running().members_changed()
            await trio.sleep(1)
            return await issue(*arguments)

        monkeypatch.setattr(membership, "issue", slowly)
        ticket = await founder.call("invite_peer", invite=InviteRequest(uses=1))
        await joiner.call("join_fleet", ticket=ticket.ticket)
        await cluster.until(cluster.converged, 30)


@pytest.mark.parametrize("name", ["a\nb", "", "-x", "x" * 64, "a b", "ä"])
async def test_a16_a_name_that_is_no_label_lets_nobody_in(
    autojump_clock: MockClock, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinshare.agent.p2p.joining.as_label", lambda _: name)
    async with open_cluster(1) as cluster:
        joiner = await cluster.add()
        with pytest.raises(InvalidRequest):
            await cluster.join(joiner, cluster[0])
        assert await cluster[0].call("list_peers") == []


async def test_a16_a_second_node_of_a_name_gets_a_number(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedNode, "name", "al_pha")
    async with open_cluster(4) as cluster:
        names = sorted(peer.name for peer in await cluster[0].call("list_peers"))
        assert names == ["al-pha-2", "al-pha-3", "al-pha-4"]
        assert all(is_label(name) for name in names)
        assert (await cluster[0].call("get_peer", peer="al-pha-3")).id == cluster[2].peer_id


@pytest.mark.parametrize("start", ["local", "LOCAL", "the first letters of another's ID"])
async def test_no_node_is_called_as_references_mean_another(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    async with open_cluster(2) as cluster:
        founder, member = cluster.nodes
        name = start if " " not in start else member.peer_id[:20]
        monkeypatch.setattr("twinshare.agent.p2p.joining.as_label", lambda _: name)
        joiner = await cluster.add()
        await cluster.join(joiner, founder)
        assert (await founder.call("get_peer", peer="node")).id == joiner.peer_id
        assert (await founder.call("get_peer", peer=member.peer_id[:20])).id == member.peer_id


# -- clocks


async def test_b1_a_founder_that_began_with_a_wrong_clock_is_well_once_it_is_right(autojump_clock: MockClock) -> None:
    async with open_cluster(0) as cluster:
        founder = await late(cluster, 400 * DAY)
        member = await late(cluster, 400 * DAY)
        await cluster.join(member, founder)
        founder.clock = member.clock = 0.0
        await cluster.kill(founder.number)
        await cluster.start(founder.number)
        # The founder signs anew by itself; nobody has to do anything.
        assert await cluster.until(cluster.converged, 30) < 30
        assert founder.mesh.problems == []
        assert member.mesh.problems == []
        third = await cluster.add()
        await cluster.join(third, founder)
        assert await cluster.until(cluster.converged, 30) < 30


async def late(cluster: Cluster, ahead: float) -> SimulatedNode:
    """A new node whose clock is ahead."""
    node = await cluster.add()
    await cluster.kill(node.number)
    node.store = type(node.store)()
    node.clock = ahead
    return await cluster.start(node.number)


async def test_b1_a_founder_whose_clock_was_ahead_once_stays_the_founder(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        await cluster.kill(0)
        cluster[0].clock = 15 * DAY
        await cluster.start(0)
        await trio.sleep(120)
        await cluster.kill(0)
        cluster[0].clock = 0.0
        await cluster.start(0)
        assert await cluster.until(cluster.converged, 30) < 30
        assert (await cluster[0].call("p2p_info")).role is Role.ADMIN
        joiner = await cluster.add()
        await cluster.join(joiner, cluster[0])


async def test_e7_a_clock_that_is_wrong_is_said_with_how_much(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        cluster[1].clock = -2 * 3600.0
        [said] = cluster[1].mesh.problems
        assert "clock" in said
        assert "2 hours" in said
        cluster[1].clock = 3600.0
        [said] = cluster[1].mesh.problems
        assert "60 minutes ahead of" in said
        cluster[1].clock = 0.0
        assert cluster[1].mesh.problems == []


async def test_b2_addresses_of_a_node_whose_clock_was_ahead_are_believed_first_hand(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        for clock in (2 * DAY, 0.0):
            await cluster.kill(1)
            cluster[1].clock = clock
            await cluster.start(1)
            assert await cluster.until(cluster.converged, 30) < 30
            running = cluster[1].mesh.require_running()
            known = cluster[0].mesh.context.address_book.peer_records()
            assert [r.addresses for r in known if r.peer == cluster[1].peer_id] == [
                [address.partition("/p2p/")[0] for address in running.host.addresses]
            ]


# -- leaving, revoking


async def test_b7_a_node_leaves_its_fleet_and_may_come_back(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        leaver = cluster[2]
        with pytest.raises(Conflict, match="founded"):
            await cluster[0].call("leave_fleet")
        left = await leaver.call("leave_fleet")
        assert (left.role, left.membership) == (Role.ADMIN, "founder")
        assert leaver.mesh.context.membership.fleet == leaver.peer_id
        assert await leaver.call("list_peers") == []
        await cluster.until(lambda: not leaver.online, 5)
        await cluster.kill(2)
        await cluster.start(2)
        assert leaver.mesh.problems == []
        await cluster.join(leaver, cluster[0])
        assert await cluster.until(cluster.converged, 30) < 30


async def test_a_revocation_lists_whom_the_peer_had_admitted_and_keeps_them(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        founder, admin = cluster.nodes
        kept, dropped = await cluster.add(), await cluster.add()
        for node in (kept, dropped):
            await cluster.join(node, admin, Role.OPERATOR)
        await cluster.until(cluster.converged, 10)
        effects = await founder.call("preview_revocation", peer=admin.peer_id)
        assert {effect.id: effect.becomes for effect in effects} == {
            admin.peer_id: "revoked", kept.peer_id: "adopted", dropped.peer_id: "adopted",
        }  # fmt: skip
        assert (await founder.call("get_peer", peer=kept.peer_id)).admitted_by == "node-1"
        gone = await founder.call("revoke_peer", peer=admin.peer_id, leave_out=(dropped.peer_id,))
        assert gone.membership == "revoked"
        assert await cluster.until(lambda: cluster.converged(0, 2), 3) < 3
        assert (await founder.call("get_peer", peer=kept.peer_id)).admitted_by == "node-0"
        said = await founder.call("get_peer", peer=admin.peer_id)
        assert (said.membership, "revoked by" in said.reason, said.role) == ("revoked", True, None)
        assert "revoked" in admin.mesh.problems[0]
