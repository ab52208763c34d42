"""The time to live of a VM: its end, the event before it, restarts of agent and machine, clocks that are set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
import trio

from twinshare.agent.node import Node
from twinshare.agent.open_node import open_node
from twinshare.agent.vm import expirer, expiry
from twinshare.agent.vm.expiry import GRACE, Expiry, expiry_after, seconds_left, shown_end
from twinshare.protocols.errors import HypervisorDown
from twinshare.protocols.services import VmService
from twinshare.protocols.vm import VmChange

from .nodes import config, open_test_node, spec, vms_of

DAY = timedelta(days=1)


class Clocks:
    """Both clocks of a machine, which a test sets and boots."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)
        self.up = 10_000.0
        self.boot = "first"

    def boots(self, after: timedelta) -> None:
        self.ahead, self.up, self.boot = self.ahead + after, 5.0, "second"


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    found = Clocks()

    class Set(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # Self, which nobody here needs
            return datetime.now(tz) + found.ahead

    monkeypatch.setattr(expiry, "datetime", Set)
    for module in (expiry, expirer):
        monkeypatch.setattr(module, "uptime", lambda: found.up)
        monkeypatch.setattr(module, "boot_id", lambda: found.boot)
    return found


async def _until_gone(vms: VmService) -> None:
    with trio.fail_after(60):
        while await vms.list_vms():
            await trio.sleep(0.01)


def _kinds(node: Node) -> list[str]:
    return [event.type for event in node.events.kept]


async def test_a_vm_is_deleted_at_its_end_by_an_operation(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        before = datetime.now(UTC)
        made = await vms.create_vm(spec(start=True, ttl=1))
        after = datetime.now(UTC)
        await vms.create_vm(spec("stays"))
        assert made.ttl == 1
        assert made.expires_at is not None
        assert before <= made.expires_at <= after + timedelta(seconds=2)
        with trio.fail_after(60):
            while [vm.name for vm in await vms.list_vms()] != ["stays"]:
                await trio.sleep(0.01)
        with trio.fail_after(60):
            while "vm.deleted" not in _kinds(node):
                await trio.sleep(0.01)
        last = (await node.operations.list())[0]
        assert (last.kind, last.target, last.principal) == ("delete_vm", made.id, "local")
        kinds = _kinds(node)
        assert kinds.count("vm.expiring") == 1
        assert kinds.index("vm.expiring") < kinds.index("vm.deleted")
        assert [one.name for one in (tmp_path / "vms").iterdir()] == [(await vms.get_vm("stays")).id]


async def test_a_change_moves_the_end_or_takes_it_away(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        made = await vms.create_vm(spec(ttl=3600))
        later = await vms.update_vm("one", VmChange(ttl=7200))
        assert made.expires_at is not None
        assert later.expires_at is not None
        assert later.expires_at - made.expires_at > timedelta(seconds=3500)
        assert (await vms.update_vm("one", VmChange(autostart=True))).expires_at == later.expires_at
        none = await vms.update_vm("one", VmChange(ttl=0))
        assert (none.ttl, none.expires_at) == (None, None)
        await vms.update_vm("one", VmChange(ttl=1))
        await _until_gone(vms)


async def test_an_end_that_came_while_the_agent_was_away(tmp_path: Path, clocks: Clocks) -> None:
    uri = f"fake://{tmp_path / 'domains'}"
    async with open_test_node(tmp_path, uri=uri) as (_, vms, _):
        await vms.create_vm(spec(ttl=3600))
        await vms.create_vm(spec("two", ttl=7200))
    clocks.up += 3601
    async with open_node(config(tmp_path, uri=uri)) as node:
        there = vms_of(node)
        with trio.fail_after(60):
            while [vm.name for vm in await there.list_vms()] != ["two"]:
                await trio.sleep(0.01)
        assert "vm.expiring" in _kinds(node)


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
def test_a_clock_that_is_set_moves_no_end(clocks: Clocks, jump: timedelta) -> None:
    end = expiry_after(100)
    assert end is not None
    clocks.ahead, clocks.up = jump, clocks.up + 40
    assert seconds_left(end, 100) == 60
    shown = shown_end(end, 100)
    assert shown is not None
    assert abs((shown - datetime.now(UTC) - jump).total_seconds() - 60) < 5


def test_after_a_boot_the_time_of_day_counts_but_nothing_ends_in_the_grace_period(clocks: Clocks) -> None:
    end = expiry_after(7 * 86400)
    assert end is not None
    clocks.boots(after=DAY)
    assert abs(seconds_left(end, 7 * 86400) - 6 * 86400) < 5
    clocks.ahead += 30 * DAY
    assert seconds_left(end, 7 * 86400) == GRACE - 5
    clocks.up = GRACE + 1
    assert seconds_left(end, 7 * 86400) < 0


def test_a_clock_that_is_behind_after_a_boot_gives_no_more_than_the_whole_time(clocks: Clocks) -> None:
    end = expiry_after(3600)
    assert end is not None
    clocks.boots(after=-400 * DAY)
    assert seconds_left(end, 3600) == 3600


async def test_after_the_grace_period_the_end_is_kept_by_the_clock_of_this_boot(tmp_path: Path, clocks: Clocks) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        made = await vms.create_vm(spec(ttl=86400))
        clocks.boots(after=timedelta(hours=1))
        clocks.up = GRACE + 1

        def kept() -> Expiry | None:
            return node.vms.inventory.find(made.id).metadata.expiry

        await vms.create_vm(spec("other"))
        with trio.fail_after(60):
            while (found := kept()) is None or found.boot != "second":
                await trio.sleep(0.01)
        assert abs(found.uptime - (GRACE + 1) - 23 * 3600) < 5
        clocks.ahead += 400 * DAY
        assert abs(seconds_left(found, 86400) - 23 * 3600) < 5
        assert len(await vms.list_vms()) == 2


async def test_a_vm_that_cannot_be_deleted_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expirer, "RETRY_AFTER", 0.05)
    async with open_test_node(tmp_path) as (node, vms, hypervisor):
        tries = 0
        destroy = hypervisor.destroy

        async def fail_twice(id: str) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise HypervisorDown("not now")
            await destroy(id)

        monkeypatch.setattr(hypervisor, "destroy", fail_twice)
        await vms.create_vm(spec(start=True, ttl=1))
        await _until_gone(vms)
        assert tries >= 3
        assert _kinds(node).count("vm.expiring") == 1
