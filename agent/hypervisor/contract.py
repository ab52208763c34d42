"""The contract of the hypervisor port, as a check that every adapter passes: in memory and libvirt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import trio

from ...protocols.errors import TwinshareError, VmExists, VmNotFound, WrongState
from .contract_optional import OPTIONAL_CHECKS
from .contract_streams import STREAM_CHECKS, refused
from .port import (
    ChangeKind,
    Domain,
    DomainPlan,
    DomainState,
    Hypervisor,
)

MakePlan = Callable[[str], Awaitable[DomainPlan]]

_TIMEOUT = 60.0
_AWKWARD = '{"text": "<a>&amp;]]>\\u0000\\r \'é🦀\'", "tab":\t1,\n "nested": {"x": null}}  '
_BEYOND_XML = '{"text": "\uffff\x7f\r"}'


async def check_hypervisor(hypervisor: Hypervisor, make_plan: MakePlan) -> None:
    """Raises AssertionError, or the error that should not have come. Leaves no domain behind.

    `make_plan(name)` gives a plan of that name with a fresh id, and a disk that boots. The guest need not obey ACPI.
    Reads `hypervisor.changes`: nobody else may.
    """
    _check_features(hypervisor)
    prefix = f"check-{uuid4().hex[:8]}"
    for number, check in enumerate(_CHECKS):
        plans = [await make_plan(f"{prefix}-{number}-{suffix}") for suffix in "ab"]
        try:
            with trio.fail_after(_TIMEOUT):
                await check(hypervisor, *plans)
        finally:
            with trio.move_on_after(_TIMEOUT, shield=True):
                for plan in plans:
                    await hypervisor.destroy(plan.id)
                    await hypervisor.undefine(plan.id)
        left = {domain.id for domain in await hypervisor.list_domains()}
        assert left.isdisjoint(plan.id for plan in plans)


def _check_features(hypervisor: Hypervisor) -> None:
    features = hypervisor.features
    assert hypervisor.connected
    assert features.accelerator in ("kvm", "qemu")
    assert {"default", "isolated"} <= set(features.networks)
    assert features.name
    assert features.version
    assert features.host_cpus >= 1


async def _definition_is_kept(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    await hypervisor.define(replace(plan, metadata=_AWKWARD))
    await _wait_for(hypervisor, ChangeKind.DEFINED, plan)
    expected = Domain(
        id=plan.id,
        name=plan.name,
        state=DomainState.SHUTOFF,
        reason=None,
        cpu_cores=plan.cpu_cores,
        memory=plan.memory,
        accelerator=plan.accelerator,
        metadata=_AWKWARD,
        started_at=None,
        mac=plan.mac,
    )
    assert await hypervisor.get_domain(plan.id) == expected
    assert expected in await hypervisor.list_domains()
    await hypervisor.define(replace(plan, memory=plan.memory + 16, metadata="{}"))
    assert await hypervisor.get_domain(plan.id) == replace(expected, memory=plan.memory + 16, metadata="{}")
    assert await hypervisor.disk_path(plan.id) == plan.disk
    await hypervisor.undefine(plan.id)
    await _wait_for(hypervisor, ChangeKind.UNDEFINED, plan)


async def _missing_domain(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    """Stopping and deleting it succeeds; all other calls are refused."""
    calls = (hypervisor.start, hypervisor.shutdown, hypervisor.pause, hypervisor.resume)
    reads: tuple[Callable[[str], Awaitable[object]], ...] = (hypervisor.get_domain, hypervisor.disk_path)
    for call in (*calls, *reads):
        with refused(VmNotFound):
            await call(plan.id)
    with refused(VmNotFound):
        await hypervisor.set_metadata(plan.id, "{}")
    await hypervisor.destroy(plan.id)
    await hypervisor.undefine(plan.id)


async def _names_are_unique(hypervisor: Hypervisor, plan: DomainPlan, other: DomainPlan) -> None:
    await hypervisor.define(plan)
    with refused(VmExists):
        await hypervisor.define(replace(other, name=plan.name))
    with refused(VmExists):
        await hypervisor.define(replace(plan, name=other.name))
    await hypervisor.undefine(plan.id)
    rivals = [replace(plan, id=str(uuid4())) for _ in range(8)]
    outcome = await _all_at_once([partial(hypervisor.define, rival) for rival in rivals])
    winners = [domain.id for domain in await hypervisor.list_domains() if domain.name == plan.name]
    for rival in rivals:
        await hypervisor.undefine(rival.id)
    assert outcome == {"done": 1, "vm_exists": 7}
    assert len(winners) == 1


async def _lifecycle(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    await hypervisor.define(plan)
    await _check_off(hypervisor, plan)
    before = datetime.now(UTC) - timedelta(seconds=2)
    await hypervisor.start(plan.id)
    await _wait_for(hypervisor, ChangeKind.STATE, plan)
    started = await hypervisor.get_domain(plan.id)
    assert started.state is DomainState.RUNNING
    assert started.started_at is not None
    assert before < started.started_at <= datetime.now(UTC) + timedelta(seconds=1)
    await hypervisor.start(plan.id)
    assert started in await hypervisor.list_domains()
    with refused(WrongState):
        await hypervisor.undefine(plan.id)
    for _again in range(2):
        await hypervisor.pause(plan.id)
        paused = await hypervisor.get_domain(plan.id)
        assert paused == replace(started, state=DomainState.PAUSED, reason="user")
    for _again in range(2):
        await hypervisor.resume(plan.id)
        assert await hypervisor.get_domain(plan.id) == started
    await hypervisor.destroy(plan.id)
    await _check_off(hypervisor, plan)
    await hypervisor.destroy(plan.id)
    await hypervisor.start(plan.id)
    again = await hypervisor.get_domain(plan.id)
    assert again.started_at is not None
    assert again.started_at > started.started_at


async def _redefinition_while_running(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    await hypervisor.define(plan)
    await hypervisor.start(plan.id)
    before = await hypervisor.get_domain(plan.id)
    await hypervisor.set_metadata(plan.id, _AWKWARD)
    after = replace(before, metadata=_AWKWARD)
    assert await hypervisor.get_domain(plan.id) == after
    await hypervisor.define(replace(plan, metadata="redefined"))
    assert await hypervisor.get_domain(plan.id) == replace(after, metadata="redefined")
    await hypervisor.destroy(plan.id)
    assert (await hypervisor.get_domain(plan.id)).metadata == "redefined"
    await hypervisor.set_metadata(plan.id, _BEYOND_XML)
    assert (await hypervisor.get_domain(plan.id)).metadata == _BEYOND_XML
    await hypervisor.set_metadata(plan.id, "")
    assert (await hypervisor.get_domain(plan.id)).metadata == ""


async def _concurrent_calls(hypervisor: Hypervisor, plan: DomainPlan, other: DomainPlan) -> None:
    """All concurrent calls succeed, and the state is the wanted one."""
    await hypervisor.define(plan)
    await hypervisor.define(other)
    both = (plan.id, other.id)
    for call, state in (
        (hypervisor.start, DomainState.RUNNING),
        (hypervisor.pause, DomainState.PAUSED),
        (hypervisor.resume, DomainState.RUNNING),
        (hypervisor.destroy, DomainState.SHUTOFF),
    ):
        outcome = await _all_at_once([partial(call, vm) for vm in both * 3])
        assert outcome == {"done": 6}, (state, outcome)
        assert [(await hypervisor.get_domain(vm)).state for vm in both] == [state, state]
    assert await _all_at_once([partial(hypervisor.undefine, vm) for vm in both * 3]) == {"done": 6}


async def _cancelled_calls(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    """A cancelled call does its work or does not; the next one finds a consistent state."""
    await hypervisor.define(plan)
    for delay in (0.0, 0.001, 0.02):
        with trio.move_on_after(delay):
            await hypervisor.start(plan.id)
        with trio.move_on_after(delay), suppress(WrongState):  # where the start was left too early
            await hypervisor.pause(plan.id)
        with trio.move_on_after(delay):
            await hypervisor.list_domains()
    await hypervisor.start(plan.id)
    await hypervisor.resume(plan.id)
    assert (await hypervisor.get_domain(plan.id)).state is DomainState.RUNNING


_CHECKS = (
    _definition_is_kept,
    _missing_domain,
    _names_are_unique,
    _lifecycle,
    _redefinition_while_running,
    _concurrent_calls,
    _cancelled_calls,
    *OPTIONAL_CHECKS,
    *STREAM_CHECKS,
)


async def _check_off(hypervisor: Hypervisor, plan: DomainPlan) -> None:
    domain = await hypervisor.get_domain(plan.id)
    assert (domain.state, domain.started_at) == (DomainState.SHUTOFF, None)
    for call in (hypervisor.pause, hypervisor.resume):
        with refused(WrongState):
            await call(plan.id)
    await hypervisor.shutdown(plan.id)
    await hypervisor.destroy(plan.id)


async def _wait_for(hypervisor: Hypervisor, kind: ChangeKind, plan: DomainPlan) -> None:
    """Wait for a change; others are dropped."""
    async for change in hypervisor.changes:
        if (change.kind, change.id) == (kind, plan.id):
            return
    raise AssertionError("the channel of changes ended")


async def _all_at_once(calls: list[Callable[[], Awaitable[None]]]) -> Counter[str]:
    """Run all calls concurrently; count those done, and the others by their error."""
    outcome: Counter[str] = Counter()

    async def run(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except TwinshareError as error:
            outcome[error.code] += 1
        else:
            outcome["done"] += 1

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
    return outcome
