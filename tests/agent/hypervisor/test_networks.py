"""Guests that speak: the tiny guest on each network, seen through the hypervisor alone."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from tests.agent.hypervisor.lab import Lab, open_lab
from tests.agent.hypervisor.private import needs_libvirt, new_sandbox
from tests.guest.disks import tiny_disk
from twinshare.agent.guest.agent_exec import MAX_OUTPUT, start_by_agent
from twinshare.agent.hypervisor.port import DomainPlan, DomainState
from twinshare.agent.vm.guest import build_seed
from twinshare.protocols.errors import GuestRefused
from twinshare.protocols.guest import ExecRequest
from twinshare.protocols.guest_channel import ERR, OUT
from twinshare.protocols.vm import CloudInit

pytestmark = [
    pytest.mark.system,
    needs_libvirt,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the tiny guest is made from Debian packages"),
]

_CLOCK = re.compile(r"clock: (\d+)\s")
PROBE = """#!/bin/sh
for target in 10.0.2.2 192.0.2.1 1.1.1.1; do
    wget -q -T 2 -O - http://$target/ && echo "probe: reached $target" >/dev/console
done
nslookup example.org 10.0.2.3 && echo "probe: reached a resolver" >/dev/console
echo "probe: end" >/dev/console
"""


async def tiny(lab: Lab, name: str, network: str, script: str = "") -> DomainPlan:
    """A tiny guest, started."""
    base = lab.sandbox.path / "images" / "tiny.raw"
    if not base.exists():
        await trio.to_thread.run_sync(shutil.copyfile, await tiny_disk(), base)
        lab.sandbox.chown(base)
    plan = await lab.make_plan(name, memory=128, network=network)
    plan = replace(plan, seed=plan.directory / "seed.iso")
    plan.disk.unlink()
    await lab.make_plan.overlay(plan.disk, base, "1G")
    assert plan.seed is not None
    plan.seed.write_bytes(build_seed(plan.id, name, CloudInit(user_data=script)))
    lab.sandbox.chown(plan.directory)
    await lab.hypervisor.define(plan)
    await lab.hypervisor.start(plan.id)
    return plan


async def page_of(lab: Lab, plan: DomainPlan) -> bytes:
    """What the guest's web server says, once it is up."""
    with trio.fail_after(90):
        while True:
            async with await lab.hypervisor.dial_guest(plan.id, 80) as stream:
                try:
                    await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                    with trio.move_on_after(5):
                        if page := b"".join([part async for part in stream]):
                            return page
                except trio.BrokenResourceError:
                    pass  # nobody listens yet
            await trio.sleep(0.2)


async def said(plan: DomainPlan, text: str) -> str:
    with trio.fail_after(90):
        while text not in (log := (plan.directory / "tty.log").read_text(errors="replace")):
            await trio.sleep(0.1)
    return log


async def check_commands(lab: Lab, plan: DomainPlan) -> None:
    """The guest agent runs short commands: output, exit code, and the bounds of both output and time."""
    ask = partial(lab.hypervisor.ask_guest_agent, plan.id)

    async def run(*command: str, **fields: Any) -> tuple[Sequence[tuple[int, bytes]], int | None]:
        pieces, end = await (await start_by_agent(ask, ExecRequest(command=list(command), **fields))).wait()
        return pieces, end.code

    with trio.fail_after(90):
        assert await run("sh", "-c", "echo x; echo y >&2; hostname; exit 3") == (
            [(OUT, b"x\nopen\n"), (ERR, b"y\n")],
            3,
        )
        [(_, zeros)], _ = await run("head", "-c", "1000000", "/dev/zero")
        assert len(zeros) == MAX_OUTPUT
        assert await run("sleep", "100", timeout=1) == ([(ERR, b"Terminated\n")], 124)
        with pytest.raises(GuestRefused):
            await ask("no-such-command", {})


async def test_a_guest_with_an_agent_is_found_and_powers_off() -> None:
    async with new_sandbox("namespaces") as sandbox, open_lab(sandbox) as lab:
        plan = await tiny(lab, "open", "default")
        assert (await page_of(lab, plan)).endswith(b"open\n")
        with trio.fail_after(60):
            while (found := await lab.hypervisor.addresses(plan.id)).source == "none":
                await trio.sleep(0.2)
        assert (*found.addresses[:1], found.source) == ("10.0.2.15", "agent")
        await check_commands(lab, plan)
        stats = await lab.hypervisor.stats(plan.id)
        assert stats.cpu_time > 0
        assert stats.disk_read > 1 << 20
        assert stats.memory_rss > 64 << 20
        await lab.hypervisor.shutdown(plan.id)
        await lab.becomes(plan, DomainState.SHUTOFF, None)


CLOCK = """#!/bin/sh
while true; do echo "clock: $(date +%s)" >/dev/console; sleep 1; done
"""


async def test_a_resumed_guest_has_the_right_time() -> None:
    async with new_sandbox("namespaces") as sandbox, open_lab(sandbox) as lab:
        plan = await tiny(lab, "clock", "default", CLOCK)
        with trio.fail_after(90):
            while (await lab.hypervisor.addresses(plan.id)).source == "none":
                await trio.sleep(0.2)
        await lab.hypervisor.pause(plan.id)
        await trio.sleep(8)
        resumed = time.time()
        await lab.hypervisor.resume(plan.id)
        length = len(await said(plan, "clock: "))
        with trio.fail_after(30):
            while not (found := _CLOCK.findall((await said(plan, "clock: "))[length:])):
                await trio.sleep(0.1)
        assert resumed - 4 < int(found[-1]) < time.time() + 4


async def test_an_isolated_guest_reaches_nobody_and_is_reached() -> None:
    async with new_sandbox("namespaces") as sandbox, open_lab(sandbox) as lab:
        plan = await tiny(lab, "closed", "isolated", PROBE)
        assert (await page_of(lab, plan)).endswith(b"closed\n")
        assert "probe: reached" not in await said(plan, "probe: end")
        async with trio.open_nursery() as nursery:
            for _ in range(20):  # many connections at once through one forward
                nursery.start_soon(page_of, lab, plan)
