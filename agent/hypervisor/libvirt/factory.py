"""Opens libvirt as a hypervisor: connects, reads its capabilities, listens to its events, and undoes it all on exit."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import libvirt
import structlog
import trio

from ....protocols.errors import HypervisorDown
from ...background import open_background
from ..changes import ChangeFeed
from ..port import Change, ChangeKind
from ..sandbox.port import SandboxPort
from .adapter import AdapterParts, LibvirtHypervisor
from .capabilities import Accelerator, read_capabilities, unknown_capabilities
from .connection import EventHandler, LibvirtConnection
from .console_log import limit_logs
from .daemon import QEMU_CONF, PrivateDaemon
from .domain_cache import DomainCache
from .guest_streams import GuestDialer
from .lanes import Lane, Lanes
from .pool import ConnectionPool
from .reaper import reap_guests

log = structlog.get_logger(__name__)
_CLOSE_TIMEOUT = 15.0
_COUNT_TIMEOUT = 3.0
_AGENT_CONNECTED = 1  # of VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_*
_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: ChangeKind.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: ChangeKind.UNDEFINED,
}


@dataclass(frozen=True)
class _Target:
    """Which libvirt is opened. `own_loopback`: its guests have a loopback apart from the host's.

    Unless `required`, one that cannot be reached is opened all the same, and reached later.
    """

    uri: str
    dialer: GuestDialer
    accelerator: Accelerator
    daemon: PrivateDaemon | None = None
    own_loopback: bool = False
    required: bool = True


@asynccontextmanager
async def open_private_libvirt(
    sandbox: SandboxPort,
    *,
    accelerator: Accelerator = "auto",
    required: bool = True,
    timeouts: Mapping[Lane, float] | None = None,
) -> AsyncIterator[LibvirtHypervisor]:
    """A libvirtd of our own in `sandbox`, or the running one of a former agent. On exit it ends unless guests run.

    Raises: HypervisorDown: nothing is installed, or, if `required`, libvirt cannot be reached.
    """
    daemon = PrivateDaemon(sandbox)
    await daemon.prepare()
    target = _Target(
        uri=daemon.uri,
        dialer=GuestDialer(sandbox.dial, daemon.uid),
        accelerator=accelerator,
        daemon=daemon,
        own_loopback=sandbox.kind == "namespaces",
        required=required,
    )
    async with _open(target, Lanes(timeouts)) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def open_libvirt_uri(
    uri: str, *, accelerator: Accelerator = "auto", required: bool = True
) -> AsyncIterator[LibvirtHypervisor]:
    """Any libvirt, by its URI. Raises: HypervisorDown."""
    if urlsplit(uri).path == "/embed":
        try:
            await trio.to_thread.run_sync(_configure_embedded, uri)
        except OSError as error:
            raise HypervisorDown(f"the root of the embedded libvirt cannot be made: {error.strerror}") from error
    target = _Target(uri=uri, dialer=GuestDialer(_dial_loopback, None), accelerator=accelerator, required=required)
    async with _open(target, Lanes()) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def _open(target: _Target, lanes: Lanes) -> AsyncIterator[LibvirtHypervisor]:
    daemon, feed, cache = target.daemon, ChangeFeed(), DomainCache()
    connection = LibvirtConnection(target.uri, _event_handler(feed, cache), daemon)
    hypervisor = LibvirtHypervisor(
        AdapterParts(
            connection=connection,
            lanes=lanes,
            cache=cache,
            feed=feed,
            capabilities=unknown_capabilities(target.uri, target.accelerator),
            read_capabilities=partial(
                read_capabilities, uri=target.uri, accelerator=target.accelerator, own_loopback=target.own_loopback
            ),
            dialer=target.dialer,
            sweep=daemon.sweep if daemon else lambda: None,
        )
    )

    def on_down() -> None:
        cache.forget_all()
        feed.publish(Change(kind=ChangeKind.DOWN))

    async def on_up() -> None:
        await hypervisor.refresh_capabilities()
        cache.forget_all()
        feed.publish(Change(kind=ChangeKind.RESYNC))

    def logs() -> list[Path]:
        consoles = [path.with_name("tty.log") for path in cache.consoles()]
        return [*consoles, daemon.log] if daemon else consoles

    with reap_guests():
        try:
            try:
                await connection.open()
                await hypervisor.refresh_capabilities()
            except HypervisorDown as error:
                if target.required:
                    raise
                connection.fail(error.message)
            async with open_background() as nursery:
                nursery.start_soon(connection.run, on_down, on_up)
                nursery.start_soon(limit_logs, logs, daemon.user if daemon else None)
                yield hypervisor
        finally:
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await _close(connection, daemon)
            feed.close()


async def _close(connection: LibvirtConnection, daemon: PrivateDaemon | None) -> None:
    """Close the connection, and end our daemon unless guests run."""
    idle = False
    if daemon is not None and connection.connected:
        pool = await connection.pool()
        with suppress(libvirt.libvirtError, trio.TooSlowError), trio.fail_after(_COUNT_TIMEOUT):
            idle = await trio.to_thread.run_sync(_count_guests, pool, abandon_on_cancel=True) == 0
    await connection.close()
    if daemon is not None:
        if idle:
            await daemon.stop()
        daemon.detach()


def _event_handler(feed: ChangeFeed, cache: DomainCache) -> EventHandler:
    """Return what is called in trio for each event of libvirt."""

    def on_event(kind: str, id: str, details: tuple[Any, ...]) -> None:
        if kind == "lifecycle":
            changed = _LIFECYCLE.get(details[0], ChangeKind.STATE)
        elif kind == "metadata":
            changed = ChangeKind.DEFINED
        elif kind == "agent":
            changed = ChangeKind.AGENT_UP if details[0] == _AGENT_CONNECTED else ChangeKind.AGENT_DOWN
        elif details[-1] == "enospc":
            changed = ChangeKind.DISK_FULL
        else:
            return
        if changed in (ChangeKind.DEFINED, ChangeKind.UNDEFINED):
            cache.forget(id)
        feed.publish(Change(kind=changed, id=id))

    return on_event


def _count_guests(pool: ConnectionPool) -> int:
    with pool.connection() as connection:
        return connection.numOfDomains()


async def _dial_loopback(port: int, host: str) -> trio.SocketStream:
    return await trio.open_tcp_stream(host, port)


def _configure_embedded(uri: str) -> None:
    """Give the libvirt in our own process, whose root is empty at first, the configuration of a private daemon."""
    for root in parse_qs(urlsplit(uri).query).get("root", ()):
        folder = Path(root) / "etc"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{root}/libvirt.log")  # not our stderr
        with suppress(FileExistsError), (folder / "qemu.conf").open("x") as file:
            file.write(QEMU_CONF)
