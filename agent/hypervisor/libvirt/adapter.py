"""The hypervisor port on libvirt: each call picks its lane, runs in a thread, and has its errors renamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import libvirt
import trio

from ....protocols.errors import TwinshareError, Unsupported, VmNotFound
from ..changes import ChangeFeed
from ..domain_xml import build_domain
from ..port import Addresses, Change, DiskView, Domain, DomainPlan, DomainStats, Features
from . import observing, verbs, viewing
from .dialling import Dialler
from .errors import renamed
from .facts import Known
from .lanes import Lane, Lanes
from .link import Link
from .pool import Pool
from .reading import Memory

T = TypeVar("T")


class LibvirtHypervisor:
    """Implements Hypervisor, Observing, Dialling and Viewing."""

    def __init__(
        self,
        link: Link,
        lanes: Lanes,
        memory: Memory,
        feed: ChangeFeed,
        known: Known,
        dialler: Dialler,
        sweep: Callable[[], None],
    ) -> None:
        """`sweep` is called in a thread when a domain is gone."""
        self._link = link
        self._lanes = lanes
        self._memory = memory
        self._feed = feed
        self._known = known
        self._dialler = dialler
        self._sweep = sweep

    # --- Hypervisor ---

    @property
    def features(self) -> Features:
        return self._known.features

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        return self._feed.receive

    async def list_domains(self) -> Sequence[Domain]:
        look = self._memory.begin()
        await self._call(Lane.QUICK, "list the VMs", look.all)
        return self._memory.learn(look, whole=True)

    async def get_domain(self, id: str) -> Domain:
        look = self._memory.begin()
        await self._on(Lane.QUICK, id, "look at the VM", look.one)
        return self._memory.learn(look, whole=False)[0]

    async def define(self, plan: DomainPlan) -> None:
        try:
            xml = build_domain(plan, self._known.host)
        except KeyError:
            known = ", ".join(self.features.networks)
            raise Unsupported(f"this node has no network named {plan.network!r}; it has: {known}") from None
        await self._call(Lane.QUICK, "define the VM", lambda connection: connection.defineXML(xml))
        self._memory.forget(plan.id)

    async def undefine(self, id: str) -> None:
        with suppress(VmNotFound):
            await self._on(Lane.SLOW, id, "delete the VM", verbs.undefine)
            await self._lanes.run(Lane.SLOW, self._sweep)
        self._memory.forget(id)

    async def start(self, id: str) -> None:
        await self._on(Lane.SLOW, id, "start the VM", verbs.start)

    async def shutdown(self, id: str) -> None:
        await self._ask(id, "shut the VM down", verbs.shutdown)

    async def destroy(self, id: str) -> None:
        with suppress(VmNotFound):
            await self._on(Lane.RESCUE, id, "stop the VM", verbs.destroy)

    async def pause(self, id: str) -> None:
        await self._ask(id, "pause the VM", verbs.pause)

    async def resume(self, id: str) -> None:
        await self._ask(id, "resume the VM", verbs.resume)

    async def set_metadata(self, id: str, metadata: str) -> None:
        await self._ask(id, "write the VM's record", lambda domain: verbs.set_metadata(domain, metadata))
        self._memory.forget(id)

    # --- Observing, Dialling and Viewing ---

    async def stats(self, id: str) -> DomainStats:
        return await self._ask(id, "read the VM's counters", observing.read_stats)

    async def addresses(self, id: str) -> Addresses:
        return await self._ask(id, "read the VM's addresses", observing.read_addresses)

    async def screenshot(self, id: str) -> bytes:
        return await self._ask(id, "take a picture of the VM's screen", observing.take_screenshot)

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        quick = partial(self._on, Lane.QUICK, id, "reach into the VM")
        slow = partial(self._ask, id, "reach into the VM")
        return await self._dialler.dial(quick, slow, id, port)

    async def dial_screen(self, id: str) -> trio.SocketStream:
        return await self._dialler.dial_screen(partial(self._on, Lane.QUICK, id, "reach the VM's screen"))

    async def dial_console(self, id: str) -> trio.SocketStream:
        return await self._dialler.dial_console(partial(self._on, Lane.QUICK, id, "reach the VM's console"))

    @asynccontextmanager
    async def view_disk(self, id: str, directory: Path) -> AsyncIterator[DiskView]:
        socket, scratch = directory / "view.sock", directory / "view.qcow2"
        await self._ask(id, "read the VM's disk", partial(viewing.begin, socket=socket, scratch=scratch))
        try:
            yield DiskView(socket=socket, export=viewing.DISK)
        finally:
            with trio.CancelScope(shield=True), suppress(TwinshareError):
                await self._ask(id, "let go of the VM's disk", viewing.end)

    # --- Inside ---

    async def _call(self, lane: Lane, doing: str, work: Callable[[libvirt.virConnect], T]) -> T:
        return await self._lanes.run(lane, partial(_work, doing, work, await self._link.pool()))

    async def _on(self, lane: Lane, id: str, doing: str, work: Callable[[libvirt.virDomain], T]) -> T:
        """Work on one domain that waits for nobody, or in a lane of its own."""
        return await self._call(lane, doing, lambda connection: work(connection.lookupByUUIDString(id)))

    async def _ask(self, id: str, doing: str, work: Callable[[libvirt.virDomain], T]) -> T:
        """Work on one domain that may wait for its QEMU."""
        pool = await self._link.pool()
        return await self._lanes.ask_guest(
            id, partial(_work, doing, lambda connection: work(connection.lookupByUUIDString(id)), pool)
        )


def _work(doing: str, work: Callable[[libvirt.virConnect], T], pool: Pool) -> T:
    with renamed(doing), pool.lend() as connection:
        return work(connection)
