"""What a node keeps of its fleet is bounded, and no revocation counts that its signer had no right to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from twinshare.agent.p2p.membership import Membership, open_membership
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.p2p.store import SCHEMA, DatabaseKeyValueStore, MemoryKeyValueStore
from twinshare.agent.state import State, open_state
from twinshare.protocols.access import Limits, Role
from twinshare.protocols.membership import statement_set
from twinshare.protocols.membership.statements import Revocation, SignedRevocation
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


async def test_an_issuer_has_a_share_of_statements_and_loses_its_own_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (statement_set.SHARES, statement_set.HISTORY) == ((4096, 1024, 128), 64)
    founder = await node(1)
    admin = await joined(founder, 2)
    watcher = await joined(founder, 3)
    monkeypatch.setattr(statement_set, "SHARES", (4096, 4, 2))
    monkeypatch.setattr(statement_set, "HISTORY", 1)
    peers = [signer(number).peer_id for number in range(10, 16)]
    chains = [await admin.issue(peer, "peer", Role.VIEWER, Limits()) for peer in peers]
    await watcher.learn(GossipUpdate(members=chains))
    for who in (admin, watcher):
        assert [who.known(peer) is not None for peer in peers] == [False, False, True, True, True, True]
        assert who.valid_certificate(founder.peer_id) is not None
        assert who.valid_certificate(admin.peer_id) is not None
    revoked = await admin.revoke(peers[5])
    await watcher.learn(revoked)
    assert watcher.valid_certificate(peers[5]) is None


async def test_what_an_issuer_loses_goes_from_the_store_too(monkeypatch: pytest.MonkeyPatch) -> None:
    founder, store = await node(1), MemoryKeyValueStore()
    admin = await open_membership(store, signer(2), "node-2", {}, lambda: float(NOW))
    await admin.adopt(
        founder.fleet, await founder.issue(admin.peer_id, "node-2", Role.ADMIN, Limits()), founder.peer_id
    )
    monkeypatch.setattr(statement_set, "SHARES", (4096, 4, 2))
    monkeypatch.setattr(statement_set, "HISTORY", 1)
    for number in range(10, 20):
        await admin.issue(signer(number).peer_id, "peer", Role.VIEWER, Limits())
    assert len(await store.load("member")) == 1 + 4
    monkeypatch.setattr(statement_set, "SHARES", (4096, 2, 2))
    await open_membership(store, signer(2), "node-2", {}, lambda: float(NOW))
    assert len(await store.load("member")) == 1 + 2, "also what a version with larger shares has kept"


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


async def test_a_node_that_was_revoked_is_alone_whoever_is_left_in_its_fleet() -> None:
    founder = await node(1)
    member, other = await joined(founder, 2), await joined(founder, 3)
    await member.learn(GossipUpdate(members=[await founder.issue(other.peer_id, other.name, Role.ADMIN, Limits())]))
    assert not member.alone
    await member.learn(await founder.revoke(member.peer_id))
    assert member.valid_certificate(other.peer_id) is not None
    assert member.alone


async def test_an_update_is_few_durable_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was one of its own, and a member's flood of statements made all others wait for the database."""
    admin = await joined(founder := await node(1), 2)
    written: list[str] = []
    plain = State.execute

    async def execute(state: State, statement: str, values: Sequence[Any] = ()) -> None:
        written.append(statement.split()[0])
        await plain(state, statement, values)

    monkeypatch.setattr(State, "execute", execute)
    peers = [signer(number).peer_id for number in range(10, 70)]
    chains = [await admin.issue(peer, "peer", Role.VIEWER, Limits()) for peer in peers]
    async with open_state(tmp_path / "db", (SCHEMA,)) as state:
        store = DatabaseKeyValueStore(state)
        watcher = await open_membership(store, signer(3), "watcher", {}, lambda: float(NOW))
        await watcher.adopt(
            founder.fleet, await founder.issue(watcher.peer_id, "w", Role.VIEWER, Limits()), founder.fleet
        )
        written.clear()
        await watcher.learn(GossipUpdate(members=chains))
        assert written == ["INSERT"]
        again = await open_membership(store, signer(3), "watcher", {}, lambda: float(NOW))
        assert all(again.valid_certificate(peer) is not None for peer in peers)
        monkeypatch.setattr(statement_set, "SHARES", (4096, 40, 2))
        monkeypatch.setattr(statement_set, "HISTORY", 1)
        written.clear()
        more = [await admin.issue(signer(number).peer_id, "p", Role.VIEWER, Limits()) for number in range(70, 90)]
        await watcher.learn(GossipUpdate(members=more))
        assert written == ["INSERT", "DELETE"]
        kept = await open_membership(store, signer(3), "watcher", {}, lambda: float(NOW))
        assert {peer.sub for peer in kept.peers} == {peer.sub for peer in watcher.peers}
