"""What a node keeps of its fleet is bounded, and no revocation counts that its signer had no right to."""

from __future__ import annotations

import msgspec
import pytest

from twinshare.agent.p2p import membership
from twinshare.agent.p2p.membership import Membership, open_membership
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.p2p.store import MemoryKeyValueStore
from twinshare.protocols.access import Limits, Role
from twinshare.protocols.membership import Revocation, SignedRevocation
from twinshare.protocols.mesh import GossipUpdate

NOW = 1_750_000_000


def signer(number: int) -> Signer:
    return Signer(bytes([number]) * 32)


async def node(number: int) -> Membership:
    return await open_membership(MemoryKeyValueStore(), signer(number), f"node-{number}", {}, lambda: float(NOW))


async def joined(founder: Membership, number: int, role: Role = Role.ADMIN) -> Membership:
    member = await node(number)
    await member.adopt(founder.fleet, await founder.issue(member.peer_id, member.name, role, Limits()), founder.peer_id)
    for update in list(founder.everything()):
        await member.learn(update)
    return member


async def test_no_more_members_are_kept_than_the_bound_and_those_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert membership.MAX_MEMBERS == 4096
    founder = await node(1)
    member = await joined(founder, 2)
    monkeypatch.setattr(membership, "MAX_MEMBERS", 4)
    peers = [signer(number).peer_id for number in range(3, 8)]
    chains = [await founder.issue(peer, "peer", Role.VIEWER, Limits()) for peer in peers]
    learnt = await member.learn(GossipUpdate(members=chains))
    assert [founder.known(peer) is not None for peer in peers] == [True, True, False, False, False]
    assert [member.known(peer) is not None for peer in peers] == [True, True, False, False, False]
    assert len(learnt.members) == 2
    later = await founder.issue(peers[0], "renamed", Role.VIEWER, Limits())
    await member.learn(GossipUpdate(members=[later]))
    found = member.known(peers[0])
    assert found is not None
    assert found.name == "renamed", "a full book still takes a later certificate of one that it knows"


async def test_no_more_revocations_are_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert membership.MAX_REVOCATIONS == 4096
    founder = await node(1)
    members = [await joined(founder, number, Role.VIEWER) for number in (2, 3, 4)]
    watcher = await joined(founder, 5)
    monkeypatch.setattr(membership, "MAX_REVOCATIONS", 2)
    for member in members:
        await watcher.learn(await founder.revoke(member.peer_id))
    assert sum(len(update.revocations) for update in watcher.everything()) == 2


@pytest.mark.parametrize("forged", ["by", "fleet", "sub", "signer"])
async def test_a_revocation_counts_only_from_its_own_signer_in_its_own_fleet(forged: str) -> None:
    founder = await node(1)
    admin, victim = await joined(founder, 2), await joined(founder, 3)
    chain = await founder.issue(admin.peer_id, admin.name, Role.ADMIN, Limits())
    await victim.learn(GossipUpdate(members=[chain]))
    claims = Revocation(fleet=founder.fleet, sub=victim.peer_id, by=admin.peer_id, iat=NOW + 1, number=1)
    changed = {
        "by": {"by": founder.peer_id},
        "fleet": {"fleet": admin.peer_id},
        "sub": {"sub": founder.peer_id},
        "signer": {},
    }[forged]
    payload = msgspec.json.encode(msgspec.structs.replace(claims, **changed))
    key = signer(3) if forged == "signer" else signer(2)
    for watcher in (founder, victim):
        await watcher.learn(GossipUpdate(revocations=[SignedRevocation(token=key.sign(payload), chain=chain)]))
        for peer in (founder.peer_id, victim.peer_id):
            found = watcher.known(peer)
            assert peer == watcher.peer_id or found is not None
            assert watcher.valid_certificate(peer) is not None or found is None
        assert sum(len(update.revocations) for update in watcher.everything()) == 0
