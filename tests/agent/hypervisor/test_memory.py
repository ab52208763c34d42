"""The hypervisor in memory: its file and its faults, which the contract check does not cover."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from twinshare.agent.hypervisor.memory import Behaviour, MemoryHypervisor, open_memory_hypervisor
from twinshare.agent.hypervisor.port import (
    ChangeKind,
    DomainPlan,
    DomainState,
    GuestInspection,
    GuestStreams,
    Hypervisor,
)
from twinshare.protocols.errors import (
    DeadlineExceeded,
    HypervisorDown,
    ImageDamaged,
    InsufficientResources,
    Unsupported,
    VmExists,
    VmNotFound,
    WrongState,
)

PLAN = DomainPlan(
    id="6a1d4a9c-6a58-4c5e-9d5f-0a4dd1f6c001",
    name="alice",
    cpu_cores=1,
    memory=64,
    accelerator="qemu",
    directory=Path("/nowhere/alice"),
    disk=Path("/nowhere/alice/disk.qcow2"),
    seed=None,
    network="default",
    mac="52:54:00:00:00:01",
    metadata="{}",
)
ALICE = PLAN.id


async def wait_for(hypervisor: MemoryHypervisor, kind: ChangeKind) -> str | None:
    with trio.fail_after(60):
        async for change in hypervisor.changes:
            if change.kind is kind:
                return change.id
    raise AssertionError("the channel ended")


async def state_of(hypervisor: MemoryHypervisor) -> tuple[DomainState, str | None]:
    domain = await hypervisor.get_domain(ALICE)
    return domain.state, domain.reason


async def test_it_implements_the_port() -> None:
    async with open_memory_hypervisor() as hypervisor:
        port: Hypervisor = hypervisor
        assert isinstance(port, GuestInspection)
        assert isinstance(port, GuestStreams)


async def test_domains_outlast_the_agent_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "domains.json"
    async with open_memory_hypervisor(path=path) as first:
        await first.define(PLAN)
        await first.set_metadata(ALICE, "kept")
        await first.start(ALICE)
        before = await first.get_domain(ALICE)
    async with open_memory_hypervisor(path=path) as second:
        assert await second.get_domain(ALICE) == before
        assert before.started_at is not None
        assert await wait_for(second, ChangeKind.AGENT_UP) == ALICE
        await second.shutdown(ALICE)
        assert await wait_for(second, ChangeKind.STATE) == ALICE
        await second.undefine(ALICE)
    async with open_memory_hypervisor(path=path) as third:
        assert await third.list_domains() == []
    assert [entry.name for entry in path.parent.iterdir()] == ["domains.json"]


async def test_a_resume_sets_the_guests_clock_where_an_agent_answers() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    behaviour = Behaviour(now=lambda: now)
    async with open_memory_hypervisor(behaviour=behaviour) as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        for boots_in, behind in ((0.0, 0.0), (None, 20.0)):
            behaviour.boots_in = boots_in
            await hypervisor.pause(ALICE)
            now += timedelta(seconds=20)
            await hypervisor.resume(ALICE)
            assert hypervisor.clock_behind(ALICE) == behind
        with pytest.raises(Unsupported):
            await hypervisor.set_guest_time(ALICE)


async def test_a_destroy_does_not_wait_for_a_shutdown(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_hypervisor(behaviour=Behaviour(timeout=60)) as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        hypervisor.hang(ALICE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hypervisor.shutdown, ALICE)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                await hypervisor.destroy(ALICE)


async def test_a_guest_may_never_shut_down(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_hypervisor(behaviour=Behaviour(shutdown_after=None)) as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        await hypervisor.shutdown(ALICE)
        await trio.sleep(3600)
        assert await state_of(hypervisor) == (DomainState.RUNNING, None)
        hypervisor.set_shutdown(ALICE, 7.0)
        await hypervisor.shutdown(ALICE)
        await trio.sleep(6.9)
        assert await state_of(hypervisor) == (DomainState.RUNNING, None)
        await trio.sleep(0.2)
        assert await state_of(hypervisor) == (DomainState.SHUTOFF, None)


async def test_a_shutdown_asked_of_a_former_life_does_not_end_the_next(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_hypervisor(behaviour=Behaviour(shutdown_after=10)) as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        await hypervisor.shutdown(ALICE)
        await hypervisor.destroy(ALICE)
        await hypervisor.start(ALICE)
        await trio.sleep(60)
        assert await state_of(hypervisor) == (DomainState.RUNNING, None)


async def test_a_hung_guest_holds_up_only_what_needs_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        hypervisor.hang(ALICE)
        for call in (hypervisor.stats, hypervisor.pause, hypervisor.shutdown, hypervisor.screenshot):
            with pytest.raises(DeadlineExceeded):
                await call(ALICE)
        assert len(await hypervisor.list_domains()) == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hypervisor.pause, ALICE)
            await trio.testing.wait_all_tasks_blocked()
            hypervisor.unhang(ALICE)
        assert await state_of(hypervisor) == (DomainState.PAUSED, "user")
        hypervisor.hang(ALICE)
        await hypervisor.destroy(ALICE)
        assert await state_of(hypervisor) == (DomainState.SHUTOFF, None)


async def test_a_full_disk_pauses_until_there_is_room() -> None:
    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.start(ALICE)
        hypervisor.fill_disk(ALICE)
        assert await wait_for(hypervisor, ChangeKind.DISK_FULL) == ALICE
        await hypervisor.resume(ALICE)
        assert await state_of(hypervisor) == (DomainState.PAUSED, "disk_full")
        hypervisor.free_disk(ALICE)
        await hypervisor.resume(ALICE)
        assert await state_of(hypervisor) == (DomainState.RUNNING, None)


async def test_crash_refusal_and_missing_parts() -> None:
    async with open_memory_hypervisor(behaviour=Behaviour(check_files=True)) as hypervisor:
        await hypervisor.define(PLAN)
        with pytest.raises(ImageDamaged):
            await hypervisor.start(ALICE)
        hypervisor.behaviour.check_files = False
        hypervisor.refuse_start(ALICE, InsufficientResources("no memory"))
        with pytest.raises(InsufficientResources):
            await hypervisor.start(ALICE)
        hypervisor.refuse_start(ALICE, None)
        await hypervisor.start(ALICE)
        hypervisor.crash(ALICE)
        assert await state_of(hypervisor) == (DomainState.CRASHED, "crashed")
        with pytest.raises(WrongState):
            await hypervisor.pause(ALICE)
        await hypervisor.define(replace(PLAN, accelerator="kvm"))
        with pytest.raises(Unsupported):
            await hypervisor.start(ALICE)


async def test_names_and_ids_are_unique() -> None:
    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        await hypervisor.define(PLAN)
        for other in (replace(PLAN, id="6a1d4a9c-6a58-4c5e-9d5f-0a4dd1f6c002"), replace(PLAN, name="bob")):
            with pytest.raises(VmExists):
                await hypervisor.define(other)
        with pytest.raises(VmNotFound):
            await hypervisor.get_domain("6a1d4a9c-6a58-4c5e-9d5f-0a4dd1f6c002")


async def test_down_and_up() -> None:
    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        hypervisor.go_down()
        assert not hypervisor.connected
        with pytest.raises(HypervisorDown):
            await hypervisor.list_domains()
        assert await wait_for(hypervisor, ChangeKind.DOWN) is None
        hypervisor.come_up()
        assert await wait_for(hypervisor, ChangeKind.RESYNC) is None
        assert len(await hypervisor.list_domains()) == 1


async def test_a_reader_that_sleeps_gets_a_resync() -> None:
    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        for number in range(5000):
            await hypervisor.set_metadata(ALICE, str(number))
        kinds = [hypervisor.changes.receive_nowait().kind for _ in range(2)]
        assert kinds == [ChangeKind.RESYNC, ChangeKind.DEFINED]


async def test_dialling_a_guest() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with open_memory_hypervisor() as hypervisor:
        await hypervisor.define(PLAN)
        with pytest.raises(WrongState):
            await hypervisor.dial_guest(ALICE, 80)
        await hypervisor.start(ALICE)
        async with await hypervisor.dial_guest(ALICE, 80) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            assert b"".join([part async for part in stream]).endswith(b"\r\n\r\nalice\n")
        with pytest.raises(ConnectionRefusedError):
            await hypervisor.dial_guest(ALICE, 7)
        hypervisor.serve_in_guest(ALICE, 7, echo)
        async with await hypervisor.dial_guest(ALICE, 7) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(5) == b"hello"
            await hypervisor.destroy(ALICE)
            with trio.fail_after(60):
                assert await stream.receive_some(1) == b""


async def test_stats_and_screenshot_of_a_running_guest() -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    behaviour = Behaviour(now=lambda: noon)
    async with open_memory_hypervisor(behaviour=behaviour) as hypervisor:
        await hypervisor.define(PLAN)
        with pytest.raises(WrongState):
            await hypervisor.stats(ALICE)
        await hypervisor.start(ALICE)
        assert (await hypervisor.get_domain(ALICE)).started_at == noon
        behaviour.now = lambda: noon.replace(hour=13)
        assert (await hypervisor.stats(ALICE)).cpu_time == 72.0
        picture = await hypervisor.screenshot(ALICE)
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        length, kind = struct.unpack_from(">I4s", picture, 8)
        assert (length, kind) == (13, b"IHDR")
        assert struct.unpack_from(">I", picture, 29)[0] == zlib.crc32(picture[12:29])


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(VmNotFound):
        async with open_memory_hypervisor() as hypervisor:
            await hypervisor.get_domain(ALICE)
