"""Everything that a hypervisor takes it gives back: files, sockets, threads, processes, whatever happened meanwhile."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.lab import new_lab, open_lab
from tests.agent.hypervisor.private import needs_libvirt, new_sandbox
from tests.leaks import nothing_leaks
from twinshare.agent.hypervisor.open import open_hypervisor
from twinshare.agent.hypervisor.port import ChangeKind
from twinshare.protocols.errors import DeadlineExceeded, HypervisorDown


def adopts_orphans() -> bool:
    answer = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(answer), 0, 0, 0)  # PR_GET_CHILD_SUBREAPER
    return bool(answer.value)


async def warm_up() -> None:
    """libvirt's event loop is one thread for the life of the process: it is no leak."""
    async with open_hypervisor("test:///default") as hypervisor:
        await hypervisor.list_domains()


async def test_opening_and_closing() -> None:
    await warm_up()
    with nothing_leaks():
        for uri in ["fake://", "test:///default"] * 20:
            async with open_hypervisor(uri) as hypervisor:
                await hypervisor.list_domains()
        for _ in range(5):
            with suppress(HypervisorDown):
                async with open_hypervisor("qemu+unix:///session?socket=/nonexistent"):
                    pass


async def test_the_process_buries_guests_only_while_there_may_be_some() -> None:
    for _ in range(2):
        async with open_hypervisor("test:///default"), open_hypervisor("test:///default"):
            assert adopts_orphans()
        assert not adopts_orphans()
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


@pytest.mark.system
@needs_libvirt
async def test_a_hard_life() -> None:
    await warm_up()
    with nothing_leaks():
        async with new_lab() as lab:
            plan = await lab.running("busy")
            with trio.move_on_after(0.2):
                while True:
                    await lab.hypervisor.list_domains()
            for port in range(80, 90):
                await (await lab.hypervisor.dial_guest(plan.id, port)).aclose()
            for _ in range(3):
                os.kill(lab.daemon(), signal.SIGKILL)
                await lab.wait_for_change(ChangeKind.RESYNC, None)
                await lab.hypervisor.screenshot(plan.id)
            os.kill(lab.qemu(plan), signal.SIGSTOP)
            for _ in range(3):
                with pytest.raises(DeadlineExceeded):
                    await lab.hypervisor.stats(plan.id)
            await lab.hypervisor.destroy(plan.id)


@pytest.mark.system
@needs_libvirt
async def test_thirty_machines_come_and_go() -> None:
    async with new_sandbox() as sandbox, open_lab(sandbox) as lab:

        async def cycle(number: int) -> None:
            plan = await lab.make_plan(f"cycle-{number}")
            await lab.hypervisor.define(plan)
            await lab.hypervisor.start(plan.id)
            await lab.hypervisor.destroy(plan.id)
            await lab.hypervisor.undefine(plan.id)
            for path in plan.directory.iterdir():
                path.unlink()
            plan.directory.rmdir()

        async def thirty() -> set[Path]:
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(cycle, number)
            return {path for path in sandbox.path.rglob("*") if not path.is_dir()}

        files = await thirty()  # and some idle connections to libvirt, which stay
        with nothing_leaks():
            assert await thirty() == files
        assert await lab.hypervisor.list_domains() == []
