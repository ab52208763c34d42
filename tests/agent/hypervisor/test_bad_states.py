"""Every bad state that libvirt and QEMU were seen in, on real guests: the right error, nothing left, and a way on."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from tests.agent.hypervisor.guests import last_tick, ticks_past
from tests.agent.hypervisor.lab import Lab, new_lab
from tests.agent.hypervisor.private import needs_libvirt
from twinshare.agent.hypervisor.port import ChangeKind, DomainPlan, DomainState
from twinshare.protocols.errors import (
    DeadlineExceeded,
    ImageDamaged,
    InsufficientResources,
    TwinshareError,
    Unsupported,
    WrongState,
)

pytestmark = [pytest.mark.system, needs_libvirt]


# --- Starts that fail ---


async def _disk_missing(lab: Lab, plan: DomainPlan) -> None:
    plan.disk.unlink()


async def _base_missing(lab: Lab, plan: DomainPlan) -> None:
    base = plan.directory / "base.raw"
    base.write_bytes(bytes(1 << 20))
    lab.sandbox.chown(base)
    plan.disk.unlink()
    await lab.make_plan.overlay(plan.disk, base)
    base.unlink()


async def _disk_is_junk(lab: Lab, plan: DomainPlan) -> None:
    plan.disk.write_bytes(b"junk" * 1000)


async def _disk_is_cut_short(lab: Lab, plan: DomainPlan) -> None:
    os.truncate(plan.disk, 60)


async def _disk_is_empty(lab: Lab, plan: DomainPlan) -> None:
    os.truncate(plan.disk, 0)


async def _disk_is_closed(lab: Lab, plan: DomainPlan) -> None:
    os.chown(plan.disk, 0, 0)
    plan.disk.chmod(0)


async def _disk_in_use(lab: Lab, plan: DomainPlan) -> None:
    await lab.running("holder", disk=plan.disk)


async def _nothing(lab: Lab, plan: DomainPlan) -> None: ...


STARTS: list[tuple[str, Callable[[Lab, DomainPlan], Awaitable[None]], dict[str, object], type[TwinshareError]]] = [
    ("disk-missing", _disk_missing, {}, ImageDamaged),
    ("base-missing", _base_missing, {}, ImageDamaged),
    ("disk-is-junk", _disk_is_junk, {}, ImageDamaged),
    ("disk-is-cut-short", _disk_is_cut_short, {}, ImageDamaged),
    ("disk-is-empty", _disk_is_empty, {}, ImageDamaged),
    ("disk-is-closed", _disk_is_closed, {}, ImageDamaged),
    ("disk-in-use", _disk_in_use, {}, WrongState),
    ("no-memory", _nothing, {"memory": 1 << 20}, InsufficientResources),
    ("no-kvm", _nothing, {"accelerator": "kvm"}, Unsupported),
    ("no-network", _nothing, {"network": "elsewhere"}, Unsupported),
]


async def test_starts_that_fail_say_why_and_leave_nothing() -> None:
    async with new_lab() as lab:
        for name, break_it, changes, expected in STARTS:
            plan = await lab.make_plan(name, **changes)
            await break_it(lab, plan)
            error = await lab.refusal(plan)
            assert type(error) is expected, (name, error)
            assert "/" not in error.message, name
            running = [domain.name for domain in await lab.hypervisor.list_domains() if domain.started_at]
            assert running in ([], ["holder"]), name
            left = {path.name for path in plan.directory.iterdir()} - {"disk.qcow2", "tty.log"}
            assert not left, name


# --- Guests that end, fill up, or hang ---


async def test_a_guest_whose_qemu_is_killed() -> None:
    async with new_lab() as lab:
        plan = await lab.running("victim")
        await ticks_past(plan, 8)
        os.kill(lab.qemu(plan), signal.SIGKILL)
        await lab.becomes(plan, DomainState.CRASHED, "crashed")
        assert (await lab.hypervisor.get_domain(plan.id)).started_at is None
        with pytest.raises(WrongState):
            await lab.hypervisor.stats(plan.id)
        before = last_tick(plan)
        await lab.hypervisor.start(plan.id)
        with trio.fail_after(60):
            while last_tick(plan) >= before:  # it counts from one again
                await trio.sleep(0.02)


async def test_a_full_disk_pauses_the_guest_until_there_is_room() -> None:
    async with new_lab() as lab:
        plan = await lab.make_plan("filler")
        small = plan.directory / "small"
        small.mkdir()
        await trio.run_process(["mount", "-t", "tmpfs", "-o", "size=3m", "none", small])
        try:
            plan = replace(plan, disk=small / "disk.qcow2")
            await lab.make_plan.overlay(plan.disk, lab.make_plan.filler())
            lab.sandbox.chown(small)
            await lab.hypervisor.define(plan)
            await lab.hypervisor.start(plan.id)
            await lab.wait_for_change(ChangeKind.DISK_FULL, plan.id)
            await lab.becomes(plan, DomainState.PAUSED, "disk_full")
            await lab.hypervisor.resume(plan.id)
            await lab.becomes(plan, DomainState.PAUSED, "disk_full")
            written = (plan.directory / "tty.log").stat().st_size
            await trio.run_process(["mount", "-o", "remount,size=64m", small])
            await lab.hypervisor.resume(plan.id)
            assert (await lab.hypervisor.get_domain(plan.id)).state is DomainState.RUNNING
            with trio.fail_after(60):
                while (plan.directory / "tty.log").stat().st_size <= written:
                    await trio.sleep(0.02)
            await lab.hypervisor.destroy(plan.id)
        finally:
            with trio.CancelScope(shield=True):
                await trio.run_process(["umount", "--lazy", small])


async def test_a_hung_guest_holds_up_nobody_else() -> None:
    async with new_lab() as lab:
        hung, other = await lab.running("hung"), await lab.running("other")
        before = await lab.hypervisor.get_domain(hung.id)
        os.kill(lab.qemu(hung), signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                await lab.hypervisor.stats(hung.id)
        with trio.fail_after(1):
            assert before in await lab.hypervisor.list_domains()
            await lab.hypervisor.stats(other.id)
            with pytest.raises(DeadlineExceeded):
                await lab.hypervisor.shutdown(hung.id)
            await lab.hypervisor.destroy(other.id)
        with trio.fail_after(20):
            await lab.hypervisor.destroy(hung.id)
        await lab.hypervisor.start(hung.id)
        await lab.hypervisor.stats(hung.id)


async def test_a_destroy_overrules_a_shutdown_that_waits() -> None:
    async with new_lab() as lab:
        plan = await lab.running("polite")
        os.kill(lab.qemu(plan), signal.SIGSTOP)
        waited: list[float] = []

        async def shut_down() -> None:
            begin = trio.current_time()
            with pytest.raises((DeadlineExceeded, WrongState)):
                await lab.hypervisor.shutdown(plan.id)
            waited.append(trio.current_time() - begin)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(shut_down)
            await trio.sleep(0.2)
            with trio.fail_after(15):  # libvirt terminates a stopped QEMU, and kills it after ten seconds
                await lab.hypervisor.destroy(plan.id)
        assert (await lab.hypervisor.get_domain(plan.id)).state is DomainState.SHUTOFF
        assert len(waited) == 4


async def test_a_guest_that_hangs_for_a_while_answers_again() -> None:
    async with new_lab() as lab:
        plan = await lab.running("slow")
        pid = lab.qemu(plan)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                await lab.hypervisor.pause(plan.id)
        finally:
            os.kill(pid, signal.SIGCONT)
        with trio.fail_after(60):
            while True:
                try:
                    await lab.hypervisor.resume(plan.id)
                    break
                except DeadlineExceeded:
                    await trio.sleep(0.05)
        await ticks_past(plan, last_tick(plan))


async def test_no_agent_in_the_guest() -> None:
    async with new_lab() as lab:
        plan = await lab.running("mute")
        assert (await lab.hypervisor.addresses(plan.id)).source == "none"
        await lab.hypervisor.shutdown(plan.id)  # by ACPI, which a boot sector does not hear
        assert (await lab.hypervisor.get_domain(plan.id)).state is DomainState.RUNNING


# --- Somebody else at work ---


async def test_what_virsh_does_behind_our_back_is_seen() -> None:
    async with new_lab() as lab:
        plan = await lab.running("shared")
        await lab.virsh("suspend", plan.name)
        await lab.becomes(plan, DomainState.PAUSED, "user")
        await lab.virsh("resume", plan.name)
        await lab.becomes(plan, DomainState.RUNNING, None)
        uri = "urn:twinshare:domain:1"
        await lab.virsh("metadata", plan.name, "--config", "--uri", uri, "--key", "x", "--set", "<vm>new</vm>")
        await lab.wait_for_change(ChangeKind.DEFINED, plan.id)
        assert (await lab.hypervisor.get_domain(plan.id)).metadata == "new"
        await lab.virsh("destroy", plan.name)
        await lab.becomes(plan, DomainState.SHUTOFF, None)
        await lab.virsh("undefine", plan.name)
        await lab.wait_for_change(ChangeKind.UNDEFINED, plan.id)
        assert await lab.hypervisor.list_domains() == []
        await lab.hypervisor.destroy(plan.id)
        await lab.hypervisor.undefine(plan.id)


async def test_a_disk_that_virsh_moved_is_found() -> None:
    async with new_lab() as lab:
        plan = await lab.running("moved")
        snapshot = ("snapshot-create-as", plan.name, "s1", "--disk-only", "--diskspec")
        moved = plan.directory / "disk.s1"
        await lab.virsh(*snapshot, f"vda,file={moved}")
        assert await lab.hypervisor.disk_path(plan.id) == moved
        await lab.hypervisor.destroy(plan.id)
        assert await lab.hypervisor.disk_path(plan.id) == moved


async def test_a_domain_that_is_not_ours_is_listed_and_left_alone() -> None:
    async with new_lab() as lab:
        xml = lab.sandbox.path / "vms" / "foreign.xml"
        xml.write_text(
            "<domain type='qemu'><name>foreign</name><memory unit='MiB'>32</memory><os><type>hvm</type></os></domain>"
        )
        await lab.virsh("define", str(xml))
        await lab.virsh("start", "foreign")
        (domain,) = await lab.hypervisor.list_domains()
        assert (domain.name, domain.metadata, domain.memory) == ("foreign", None, 32)
        assert domain.started_at is not None
        assert await lab.hypervisor.list_domains() == [domain]
