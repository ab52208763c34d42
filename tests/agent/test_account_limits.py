"""Each account has a budget of its own, kept by the node that it uses; nobody's use takes another's place."""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.agent.nodes import open_test_node, spec
from tests.agent.p2p.raw import raw_call
from twinshare.agent import limits
from twinshare.agent.disk_reserve import DiskReserve
from twinshare.agent.journal import store
from twinshare.agent.journal.store import JournalStore
from twinshare.agent.limits import LIMITS, AccountLimits, Budget, Meter, Rate, Share
from twinshare.agent.simulation import SimulatedNode, open_cluster
from twinshare.agent.state import State, open_state
from twinshare.protocols.errors import RateLimited
from twinshare.protocols.vm import VmChange


def letter(text: str) -> bytes:
    return msgspec.msgpack.encode({"letter": {"message_type": "X", "data": {"text": text}}})


async def flood(flooder: SimulatedNode, target: SimulatedNode, times: int, method: str, packed: bytes) -> None:
    for _ in range(times):
        await raw_call(flooder, target.peer_id, method, packed)


def test_an_account_has_its_burst_and_then_what_comes_back() -> None:
    clock = [0.0]
    meter = Meter(AccountLimits(calls=Rate(10, 2)), clock=lambda: clock[0])
    for _ in range(10):
        meter.charge("a", Budget.CALLS)
    with pytest.raises(RateLimited) as refused:
        meter.charge("a", Budget.CALLS, 2)
    meter.charge("b", Budget.CALLS, 10)
    meter.charge("a", Budget.MESSAGES)
    clock[0] += refused.value.details["retry_after"]
    meter.charge("a", Budget.CALLS, 2)
    calls = next(use for use in meter.use("a") if use.budget == "calls")
    assert (calls.used, calls.burst, calls.refused) == (8, 10, 1)
    assert not any(use.refused for use in meter.use("b"))


async def test_what_a_peer_sends_is_charged_to_it_where_it_arrives(autojump_clock: MockClock) -> None:
    async with open_cluster(3) as cluster:
        target, flooder, other = cluster.nodes
        with pytest.raises(RateLimited) as refused:
            await flood(flooder, target, LIMITS.messages.burst + 100, "deliver", letter("x"))
        taken = sum(event.type == "p2p.message" for event in target.events.kept)
        assert LIMITS.messages.burst <= taken < LIMITS.messages.burst + 100
        await raw_call(other, target.peer_id, "deliver", letter("x"))
        await trio.sleep(refused.value.details["retry_after"])
        await raw_call(flooder, target.peer_id, "deliver", letter("x"))
        shown = await target.call("get_peer", peer=flooder.peer_id)
        assert {use.budget: use.refused for use in shown.budgets} == {str(b): int(b == "messages") for b in Budget}
        assert all(use.refused == 0 for use in (await target.call("get_peer", peer=other.peer_id)).budgets)


async def test_bytes_of_messages_are_bounded_too(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        target, flooder = cluster.nodes
        with pytest.raises(RateLimited, match="message bytes"):
            await flood(flooder, target, 100, "deliver", letter("x" * 60_000))
        size = sum(len(msgspec.msgpack.encode(event)) for event in target.events.kept)
        assert size < LIMITS.message_bytes.burst + (1 << 20)


async def test_calls_of_a_peer_are_bounded_whatever_they_ask(autojump_clock: MockClock) -> None:
    async with open_cluster(2) as cluster:
        target, flooder = cluster.nodes
        with pytest.raises(RateLimited, match="more calls"):
            await flood(flooder, target, LIMITS.calls.burst + 1, "list_vms", b"\x80")
        await target.ask(flooder.peer_id, "list_vms")


async def insert(state: State, principal: str, number: int, size: int, ended: bool = True) -> None:
    row = (
        uuid.uuid4().hex, uuid.uuid4().hex, "create_vm", "x", principal, bytes(size), "done" if ended else "running",
        "", b"\x80", None, None, float(number), 0.0,
    )  # fmt: skip
    await state.execute("INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


async def test_an_account_that_floods_the_journal_loses_only_its_own_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIMITS", AccountLimits(journal=Share(10, 10_000)))
    async with open_state(tmp_path / "state.db") as state:
        await insert(state, "local", 0, 10)
        await insert(state, "peer-b", 1, 10)
        await insert(state, "peer-a/token:x", 2, 10, ended=False)
        for number in range(3, 43):
            await insert(state, f"peer-a/token:{number}", number, 10)
        for number in range(43, 48):
            await insert(state, "peer-c", number, 4000)
        await JournalStore(state, DiskReserve(tmp_path), bytes(32)).forget_old()
        rows = await state.query("SELECT principal, created_at FROM operations")
    accounts = [principal.partition("/")[0] for principal, _ in rows]
    assert {account: accounts.count(account) for account in accounts} == {
        "local": 1, "peer-b": 1, "peer-a": 11, "peer-c": 2,
    }  # fmt: skip
    assert min(at for principal, at in rows if principal.startswith("peer-a")) == 2.0, "it has not ended"


async def test_what_is_over_a_share_is_forgotten_while_the_node_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OWN_LIMITS", AccountLimits(journal=Share(3, 1 << 20)))
    monkeypatch.setattr(store, "FORGET_EVERY", 2)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        for number in range(12):
            await vms.update_vm("one", VmChange(labels={"n": str(number)}))
        assert 3 <= len(await node.operations.list()) <= 6
