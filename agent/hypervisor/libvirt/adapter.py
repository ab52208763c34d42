"""The hypervisor port on libvirt: each call chooses its lane, runs in a thread, and has its errors mapped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import libvirt
import trio

from ....protocols.errors import HypervisorDown, TwinshareError, Unsupported, VmNotFound
from ..changes import ChangeFeed
from ..domain_xml import build_domain
from ..port import Addresses, Change, Domain, DomainPlan, DomainStats, ExportedDisk, Features
from . import disk_export, domain_ops, inspection
from .capabilities import Capabilities
from .connection import LibvirtConnection
from .domain_cache import DomainCache
from .errors import mapped_errors
from .guest_streams import GuestDialer, channel_is_open
from .lanes import Lane, Lanes
from .pool import ConnectionPool

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """What the adapter uses. `capabilities` are assumed until the first connection; `read_capabilities` reads others.

    `sweep` is called in a thread when a domain is undefined.
    """

    connection: LibvirtConnection
    lanes: Lanes
    cache: DomainCache
    feed: ChangeFeed
    capabilities: Capabilities
    read_capabilities: Callable[[libvirt.virConnect], Capabilities]
    dialer: GuestDialer
    sweep: Callable[[], None]


class LibvirtHypervisor:
    """Implements Hypervisor, GuestInspection, GuestClock, GuestAgent, GuestStreams and DiskExport."""

    def __init__(self, parts: AdapterParts) -> None:
        self._connection, self._lanes, self._cache = parts.connection, parts.lanes, parts.cache
        self._feed, self._capabilities, self._read_capabilities = (
            parts.feed,
            parts.capabilities,
            parts.read_capabilities,
        )
        self._dialer, self._sweep = parts.dialer, parts.sweep

    # --- Hypervisor ---

    @property
    def features(self) -> Features:
        known = self._capabilities.features
        problem = self._connection.problem
        return known if problem is None else replace(known, problems=(*known.problems, problem))

    @property
    def connected(self) -> bool:
        return self._connection.connected

    @property
    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        return self._feed.receive

    async def list_domains(self) -> Sequence[Domain]:
        scan = self._cache.begin_scan()
        await self._call(Lane.QUICK, "list the VMs", scan.read_all)
        return self._cache.merge(scan, complete=True)

    async def get_domain(self, id: str) -> Domain:
        scan = self._cache.begin_scan()
        await self._on_domain(Lane.QUICK, id, "look at the VM", scan.read_one)
        return self._cache.merge(scan, complete=False)[0]

    async def define(self, plan: DomainPlan) -> None:
        try:
            xml = build_domain(plan, self._capabilities.host)
        except KeyError:
            known = ", ".join(self.features.networks)
            raise Unsupported(f"this node has no network named {plan.network!r}; it has: {known}") from None
        await self._call(Lane.QUICK, "define the VM", lambda connection: connection.defineXML(xml))
        self._cache.forget(plan.id)

    async def undefine(self, id: str) -> None:
        with suppress(VmNotFound):
            await self._on_domain(Lane.SLOW, id, "delete the VM", domain_ops.undefine)
            await self._lanes.run(Lane.SLOW, self._sweep)
        self._cache.forget(id)

    async def start(self, id: str) -> None:
        await self._on_domain(Lane.SLOW, id, "start the VM", domain_ops.start)

    async def shutdown(self, id: str) -> None:
        await self._ask_qemu(id, "shut the VM down", domain_ops.shutdown)

    async def destroy(self, id: str) -> None:
        with suppress(VmNotFound):
            await self._on_domain(Lane.RESCUE, id, "stop the VM", domain_ops.destroy)

    async def pause(self, id: str) -> None:
        await self._ask_qemu(id, "pause the VM", domain_ops.pause)

    async def resume(self, id: str) -> None:
        if await self._ask_qemu(id, "resume the VM", domain_ops.resume):
            with suppress(TwinshareError):  # its own log line says why: there may be no agent
                await self.set_guest_time(id)

    async def set_metadata(self, id: str, metadata: str) -> None:
        await self._ask_qemu(id, "write the VM's record", lambda domain: domain_ops.set_metadata(domain, metadata))
        self._cache.forget(id)

    async def disk_path(self, id: str) -> Path:
        return Path(await self._on_domain(Lane.QUICK, id, "find the VM's disk", domain_ops.read_disk_path))

    # --- GuestInspection, GuestClock, GuestStreams and DiskExport ---

    async def stats(self, id: str) -> DomainStats:
        return await self._ask_qemu(id, "read the VM's counters", inspection.read_stats)

    async def addresses(self, id: str) -> Addresses:
        return await self._ask_qemu(id, "read the VM's addresses", inspection.read_addresses)

    async def screenshot(self, id: str) -> bytes:
        return await self._ask_qemu(id, "take a picture of the VM's screen", inspection.take_screenshot)

    async def set_guest_time(self, id: str) -> None:
        await self._ask_qemu(id, "set the VM's clock", domain_ops.set_guest_time)

    async def ask_guest_agent(self, id: str, command: str, arguments: Mapping[str, object]) -> object:
        request = json.dumps({"execute": command, "arguments": arguments})
        return await self._ask_qemu(id, "ask the guest agent", partial(domain_ops.ask_guest_agent, request=request))

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        quick = partial(self._on_domain, Lane.QUICK, id, "reach into the VM")
        slow = partial(self._ask_qemu, id, "reach into the VM")
        return await self._dialer.dial(quick, slow, id, port)

    async def dial_screen(self, id: str) -> trio.SocketStream:
        return await self._dialer.dial_screen(partial(self._on_domain, Lane.QUICK, id, "reach the VM's screen"))

    async def dial_console(self, id: str) -> trio.SocketStream:
        return await self._dialer.dial_console(partial(self._on_domain, Lane.QUICK, id, "reach the VM's console"))

    async def dial_channel(self, id: str) -> trio.SocketStream:
        return await self._dialer.dial_channel(partial(self._on_domain, Lane.QUICK, id, "reach the VM's guest channel"))

    async def channel_is_open(self, id: str) -> bool:
        return await self._on_domain(Lane.QUICK, id, "see who serves the VM's guest channel", channel_is_open)

    @asynccontextmanager
    async def export_disk(self, id: str, directory: Path) -> AsyncIterator[ExportedDisk]:
        socket, scratch = directory / "export.sock", directory / "export.qcow2"
        await self._ask_qemu(id, "read the VM's disk", partial(disk_export.begin, socket=socket, scratch=scratch))
        try:
            yield ExportedDisk(socket=socket, export=disk_export.DISK)
        finally:
            with trio.CancelScope(shield=True), suppress(TwinshareError):
                await self._ask_qemu(id, "end the export of the VM's disk", disk_export.end)

    async def refresh_capabilities(self) -> None:
        """Read what libvirt can do, after each connect. Raises: HypervisorDown."""
        try:
            self._capabilities = await self._call(Lane.SLOW, "learn what libvirt can do", self._read_capabilities)
        except TwinshareError as error:
            raise HypervisorDown(error.message) from error

    async def _call(self, lane: Lane, doing: str, work: Callable[[libvirt.virConnect], T]) -> T:
        return await self._lanes.run(lane, partial(_work, doing, work, await self._connection.pool()))

    async def _on_domain(self, lane: Lane, id: str, doing: str, work: Callable[[libvirt.virDomain], T]) -> T:
        """Run work on one domain that does not wait for its QEMU, or has a lane of its own."""
        return await self._call(lane, doing, lambda connection: work(connection.lookupByUUIDString(id)))

    async def _ask_qemu(self, id: str, doing: str, work: Callable[[libvirt.virDomain], T]) -> T:
        """Run work on one domain that may wait for its QEMU."""
        pool = await self._connection.pool()
        return await self._lanes.ask_guest(
            id, partial(_work, doing, lambda connection: work(connection.lookupByUUIDString(id)), pool)
        )


def _work(doing: str, work: Callable[[libvirt.virConnect], T], pool: ConnectionPool) -> T:
    with mapped_errors(doing), pool.connection() as connection:
        return work(connection)
