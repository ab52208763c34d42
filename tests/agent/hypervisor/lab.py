"""A hypervisor with its sandbox, and what a test does behind its back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.agent.hypervisor.guests import PlanMaker, ticks_past
from tests.agent.hypervisor.private import new_sandbox
from twinshare.agent.hypervisor.libvirt import LibvirtHypervisor, open_private_libvirt
from twinshare.agent.hypervisor.libvirt.lanes import Lane
from twinshare.agent.hypervisor.port import ChangeKind, DomainPlan, DomainState
from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox
from twinshare.protocols.errors import TwinshareError


@dataclass
class Lab:
    hypervisor: LibvirtHypervisor
    sandbox: Sandbox
    make_plan: PlanMaker

    async def running(self, name: str, **changes: object) -> DomainPlan:
        plan = await self.make_plan(name, **changes)
        await self.hypervisor.define(plan)
        await self.hypervisor.start(plan.id)
        await ticks_past(plan, 0)
        return plan

    async def refusal(self, plan: DomainPlan) -> TwinshareError:
        """The error that defining and starting it ends in."""
        try:
            await self.hypervisor.define(plan)
            await self.hypervisor.start(plan.id)
        except TwinshareError as error:
            return error
        raise AssertionError(f"{plan.name} started")

    async def wait_for_change(self, kind: ChangeKind, id: str | None) -> None:
        with trio.fail_after(60):
            async for change in self.hypervisor.changes:
                if (change.kind, change.id) == (kind, id):
                    return

    async def becomes(self, plan: DomainPlan, state: DomainState, reason: str | None) -> None:
        """Wait, change by change, until the domain is in this state."""
        with trio.fail_after(60):
            while True:
                domain = await self.hypervisor.get_domain(plan.id)
                if (domain.state, domain.reason) == (state, reason):
                    return
                await self.wait_for_change(ChangeKind.STATE, plan.id)

    @property
    def hypervisor_folder(self) -> Path:
        return self.sandbox.path / "hypervisor"

    def qemu(self, plan: DomainPlan) -> int:
        """The pid of a domain's QEMU, as we see it."""
        return _pid_with(plan.id)

    def daemon(self) -> int:
        return _pid_with(str(self.hypervisor_folder / "c/libvirt/libvirtd.conf"))

    async def virsh(self, *words: str) -> str:
        uri = f"qemu+unix:///session?socket={self.hypervisor_folder}/r/libvirt/libvirt-sock"
        done = await trio.run_process(["virsh", "-q", "-c", uri, *words], capture_stdout=True)
        return done.stdout.decode()


def _pid_with(text: str) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith(("libvirtd", "qemu-system-x86_64")) and any(text in word for word in words):
            return int(entry.name)
    raise AssertionError(f"no process with {text}")


@asynccontextmanager
async def open_lab(sandbox: Sandbox) -> AsyncIterator[Lab]:
    timeouts = {Lane.MONITOR: 1.5}
    async with open_private_libvirt(sandbox, timeouts=timeouts) as hypervisor:
        make_plan = PlanMaker(sandbox.path / "vms", sandbox.chown)
        try:
            yield Lab(hypervisor, sandbox, make_plan)
        finally:
            with trio.move_on_after(60, shield=True):
                for domain in await hypervisor.list_domains():
                    await hypervisor.destroy(domain.id)
                    await hypervisor.undefine(domain.id)


@asynccontextmanager
async def new_lab() -> AsyncIterator[Lab]:
    async with new_sandbox() as sandbox, open_lab(sandbox) as lab:
        yield lab
