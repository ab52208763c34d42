"""A private libvirtd that ends, hangs, or is left by its agent: guests never notice, and it comes back."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from tests.agent.hypervisor.guests import PlanMaker, last_tick, ticks_past
from tests.agent.hypervisor.lab import Lab, new_lab, open_lab
from tests.agent.hypervisor.private import needs_libvirt, new_sandbox
from twinshare.agent.hypervisor.libvirt import open_private_libvirt
from twinshare.agent.hypervisor.port import ChangeKind, DomainState
from twinshare.agent.hypervisor.sandbox.connection import Process
from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox
from twinshare.protocols.errors import HypervisorDown

pytestmark = [pytest.mark.system, needs_libvirt]


async def test_a_killed_daemon_is_replaced_and_no_guest_notices() -> None:
    async with new_lab() as lab:
        plan = await lab.running("survivor")
        before = await lab.hypervisor.get_domain(plan.id)
        async with await lab.hypervisor.dial_guest(plan.id, 80) as stream:
            place = stream.socket.getpeername()
        assert place[0] != "127.0.0.1"  # which other guests reach as 10.0.2.2
        for _ in range(3):
            counted = last_tick(plan)
            os.kill(lab.daemon(), signal.SIGKILL)
            await lab.wait_for_change(ChangeKind.DOWN, None)
            await lab.wait_for_change(ChangeKind.RESYNC, None)
            assert lab.hypervisor.connected
            assert await lab.hypervisor.list_domains() == [before]
            await ticks_past(plan, counted)
        async with await lab.hypervisor.dial_guest(plan.id, 80) as stream:
            assert stream.socket.getpeername() == place
        await lab.hypervisor.stats(plan.id)


async def test_calls_wait_for_a_daemon_that_is_coming_back() -> None:
    async with new_lab() as lab:
        plan = await lab.running("patient")
        os.kill(lab.daemon(), signal.SIGKILL)
        await lab.wait_for_change(ChangeKind.DOWN, None)
        assert (await lab.hypervisor.get_domain(plan.id)).state is DomainState.RUNNING


async def test_a_daemon_that_hangs_is_replaced() -> None:
    async with new_lab() as lab:
        plan = await lab.running("survivor")
        before = await lab.hypervisor.get_domain(plan.id)
        os.kill(lab.daemon(), signal.SIGSTOP)
        with trio.fail_after(30):
            await lab.wait_for_change(ChangeKind.DOWN, None)
            await lab.wait_for_change(ChangeKind.RESYNC, None)
        assert await lab.hypervisor.list_domains() == [before]


async def test_a_daemon_that_cannot_come_back_is_said_to_be_down() -> None:
    async with new_lab() as lab:
        conf = lab.hypervisor_folder / "c/libvirt/libvirtd.conf"
        words = conf.read_text()
        conf.write_text("nonsense")
        os.kill(lab.daemon(), signal.SIGKILL)
        await lab.wait_for_change(ChangeKind.DOWN, None)
        with pytest.raises(HypervisorDown):
            await lab.hypervisor.list_domains()
        assert not lab.hypervisor.connected
        conf.write_text(words)
        await lab.wait_for_change(ChangeKind.RESYNC, None)
        assert await lab.hypervisor.list_domains() == []


class NoRoom:
    """A place in which nothing can be started."""

    user: str | None = None
    kind = "plain"

    def __init__(self, path: Path) -> None:
        self.path = path

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def dial(self, port: int, host: str) -> NoReturn:
        raise ConnectionRefusedError


async def test_a_daemon_that_cannot_be_started_is_down_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(HypervisorDown, match="No space left"):
        async with open_private_libvirt(NoRoom(tmp_path)):
            pass


class BreakingSandbox:
    """A real sandbox in which the daemon dies at once while it is broken."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.path, self.user, self.kind, self.dial = sandbox.path, sandbox.user, sandbox.kind, sandbox.dial
        self._sandbox = sandbox
        self.broken = True
        self.starts: list[float] = []

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> Process:
        self.starts.append(trio.current_time())
        failing = ["sh", "-c", "echo noise >&2; echo 'no room for me' >&2; exit 3"]
        return await self._sandbox.spawn(failing if self.broken else argv, env=env, stderr=stderr)


async def test_a_daemon_that_dies_at_once_is_retried_with_backoff_and_its_output_is_a_problem() -> None:
    async with new_sandbox() as sandbox:
        breaking = BreakingSandbox(sandbox)
        with pytest.raises(HypervisorDown, match=r"exit code 3: noise; no room for me"):
            async with open_private_libvirt(breaking):
                pass
        async with open_private_libvirt(breaking, required=False) as hypervisor:
            assert not hypervisor.connected
            await trio.sleep(1.5)
            with trio.fail_after(60):
                while len(breaking.starts) < 3:
                    await trio.sleep(0.01)
            assert len(breaking.starts) <= 9  # half a second's worth of retries without backoff
            assert any("no room for me" in problem for problem in hypervisor.features.problems)
            with pytest.raises(HypervisorDown, match="no room for me"):
                await hypervisor.list_domains()
            breaking.broken = False
            lab = Lab(hypervisor, sandbox, PlanMaker(sandbox.path / "vms", sandbox.chown))
            await lab.wait_for_change(ChangeKind.RESYNC, None)
            assert hypervisor.connected
            assert not any("no room for me" in problem for problem in hypervisor.features.problems)
            assert hypervisor.features.version
            assert await hypervisor.list_domains() == []


async def test_the_next_agent_finds_the_guests_of_the_last() -> None:
    async with new_sandbox() as sandbox:
        async with open_private_libvirt(sandbox) as first:
            plan = await PlanMaker(sandbox.path / "vms", sandbox.chown)("survivor")
            await first.define(plan)
            await first.start(plan.id)
            counted = await ticks_past(plan, 0)
            before = await first.list_domains()
        async with open_lab(sandbox) as lab:
            assert await lab.hypervisor.list_domains() == before
            await ticks_past(plan, counted)
            await lab.hypervisor.destroy(plan.id)
        with pytest.raises(AssertionError, match="no process"):
            Lab(lab.hypervisor, sandbox, lab.make_plan).daemon()


async def test_a_daemon_that_hangs_when_the_agent_starts_is_replaced() -> None:
    async with new_sandbox() as sandbox, open_lab(sandbox) as lab:
        plan = await lab.running("survivor")
        before = await lab.hypervisor.list_domains()
        os.kill(lab.daemon(), signal.SIGSTOP)
        async with open_lab(sandbox) as second:
            with trio.fail_after(20):
                assert await second.hypervisor.list_domains() == before
            await ticks_past(plan, last_tick(plan))
            await lab.wait_for_change(ChangeKind.RESYNC, None)  # the first has lost its daemon, and finds the new one


async def test_a_daemon_takes_nothing_over_from_before_a_boot_of_the_machine() -> None:
    """libvirt starts what virsh marked once, and knows by a file of its own that it has."""
    async with new_sandbox() as sandbox:
        async with open_private_libvirt(sandbox) as hypervisor:
            lab = Lab(hypervisor, sandbox, PlanMaker(sandbox.path / "vms", sandbox.chown))
            plan = await lab.make_plan("early")
            await hypervisor.define(plan)
            await lab.virsh("autostart", plan.name)
        async with open_private_libvirt(sandbox) as hypervisor:
            assert [domain.state for domain in await hypervisor.list_domains()] == [DomainState.SHUTOFF]
        (sandbox.path / "hypervisor/r/boot").write_text("another boot\n")
        async with open_lab(sandbox) as lab:
            await lab.becomes(plan, DomainState.RUNNING, None)
