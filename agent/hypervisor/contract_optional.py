"""The part of the hypervisor port's contract on what a driver may lack: inspection, clock, guest agent, exports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from ...protocols.errors import GuestRefused, Unsupported, WrongState
from .contract_streams import refused
from .port import (
    DiskExport,
    DomainPlan,
    DomainState,
    GuestAgent,
    GuestClock,
    GuestInspection,
    Hypervisor,
)


async def _inspection(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestInspection):
        return
    await hypervisor.define(plan)
    looks: tuple[Callable[[str], Awaitable[object]], ...] = (
        hypervisor.stats,
        hypervisor.addresses,
        hypervisor.screenshot,
    )
    for look in looks:
        with refused(WrongState):
            await look(plan.id)
    await hypervisor.start(plan.id)
    first, second = await hypervisor.stats(plan.id), await hypervisor.stats(plan.id)
    assert 0 <= first.cpu_time <= second.cpu_time
    assert min(first.memory_rss, first.disk_read, first.disk_written, first.disk_allocated) >= 0
    found = await hypervisor.addresses(plan.id)
    assert found.source in ("agent", "lease", "none")
    assert bool(found.addresses) == (found.source != "none")
    assert (await hypervisor.screenshot(plan.id)).startswith(b"\x89PNG\r\n\x1a\n")


async def _clock_is_set(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestClock):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.set_guest_time(plan.id)
    await hypervisor.start(plan.id)
    assert await hypervisor.disk_path(plan.id) == plan.disk
    with suppress(Unsupported):  # a guest without an agent
        await hypervisor.set_guest_time(plan.id)
    await hypervisor.pause(plan.id)
    with refused(Unsupported):  # nobody answers in a paused guest
        await hypervisor.set_guest_time(plan.id)


async def _agent_is_asked(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, GuestAgent):
        return
    await hypervisor.define(plan)
    with refused(WrongState):
        await hypervisor.ask_guest_agent(plan.id, "guest-ping", {})
    await hypervisor.start(plan.id)
    with suppress(Unsupported):  # a guest without an agent
        assert await hypervisor.ask_guest_agent(plan.id, "guest-ping", {}) == {}
    with refused(Unsupported, GuestRefused):
        await hypervisor.ask_guest_agent(plan.id, "no-such-command", {})
    await hypervisor.pause(plan.id)
    with refused(Unsupported):  # nobody answers in a paused guest
        await hypervisor.ask_guest_agent(plan.id, "guest-ping", {})


async def _disk_is_exported(hypervisor: Hypervisor, plan: DomainPlan, _: DomainPlan) -> None:
    if not isinstance(hypervisor, DiskExport):
        return
    await hypervisor.define(plan)
    with refused(WrongState, Unsupported):
        async with hypervisor.export_disk(plan.id, plan.directory):
            raise AssertionError("a domain that is off has no export")
    await hypervisor.start(plan.id)
    with suppress(Unsupported):  # a driver without QEMU
        async with (
            # As a killed agent leaves one: the next replaces it.
            hypervisor.export_disk(plan.id, plan.directory) as left,
            hypervisor.export_disk(plan.id, plan.directory) as export,
        ):
            async with await trio.open_unix_socket(str(export.socket)) as stream:
                assert await stream.receive_some(8) == b"NBDMAGIC"
            assert (await hypervisor.get_domain(plan.id)).state is DomainState.RUNNING
            await hypervisor.pause(plan.id)
            await hypervisor.resume(plan.id)
        for gone in (left, export):
            assert not await trio.Path(gone.socket).exists(), "an export leaves nothing behind"
        async with hypervisor.export_disk(plan.id, plan.directory):
            await hypervisor.destroy(plan.id)
    assert (await hypervisor.get_domain(plan.id)).state in (DomainState.SHUTOFF, DomainState.RUNNING)


OPTIONAL_CHECKS = (_inspection, _clock_is_set, _agent_is_asked, _disk_is_exported)
