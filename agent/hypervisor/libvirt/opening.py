"""Open libvirt as a hypervisor: connect, learn what it can do, listen, keep the connection; undo it all at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
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
from .adapter import LibvirtHypervisor
from .console_log import keep_logs_short
from .daemon import QEMU_CONF, Place, PrivateDaemon
from .dialling import Dialler
from .errors import rename
from .facts import Accelerator, Known, read_facts
from .lanes import Lane, Lanes
from .link import Link
from .pool import Pool
from .reading import Memory
from .reaper import burying_guests

log = structlog.get_logger(__name__)
_CLOSE_PATIENCE = 15.0
_CONNECTED = 1  # of VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_*


@asynccontextmanager
async def open_private(
    place: Place, *, accelerator: Accelerator = "auto", patience: Mapping[Lane, float] | None = None
) -> AsyncIterator[LibvirtHypervisor]:
    """A libvirtd of our own in `place`; the one of a former agent if it still runs. It ends with us unless guests run.

    Raises: HypervisorDown.
    """
    daemon = PrivateDaemon(place)
    await daemon.prepare()
    lanes, dialler, enclosed = Lanes(patience), Dialler(place.dial, daemon.uid), place.kind == "namespaces"
    async with _open(daemon.uri, daemon, lanes, dialler, accelerator, enclosed=enclosed) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def open_uri(uri: str, *, accelerator: Accelerator = "auto") -> AsyncIterator[LibvirtHypervisor]:
    """Any libvirt, by its URI. Raises: HypervisorDown."""
    if urlsplit(uri).path == "/embed":
        try:
            await trio.to_thread.run_sync(_configure_embedded, uri)
        except OSError as error:
            raise HypervisorDown(f"the root of the embedded libvirt cannot be made: {error.strerror}") from error
    async with _open(uri, None, Lanes(), Dialler(_dial_here, None), accelerator, enclosed=False) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def _open(
    uri: str,
    daemon: PrivateDaemon | None,
    lanes: Lanes,
    dialler: Dialler,
    accelerator: Accelerator,
    *,
    enclosed: bool,
) -> AsyncIterator[LibvirtHypervisor]:
    feed, memory = ChangeFeed(), Memory()
    link = Link(uri, _listener(feed, memory), daemon)

    def on_change() -> None:
        memory.forget_all()
        feed.publish(Change(kind=ChangeKind.RESYNC if link.connected else ChangeKind.DOWN))

    with burying_guests():
        try:
            await link.open()
            pool = await link.pool()
            try:
                known = await lanes.run(Lane.SLOW, lambda: _learn(pool, uri, accelerator, enclosed=enclosed))
            except libvirt.libvirtError as error:
                raise HypervisorDown(rename(error, "learn what libvirt can do").message) from error
            async with open_background() as nursery:
                nursery.start_soon(link.keep, on_change)
                nursery.start_soon(keep_logs_short, memory.consoles, daemon.user if daemon else None)
                sweep = daemon.sweep if daemon else _nothing
                yield LibvirtHypervisor(link, lanes, memory, feed, known, dialler, sweep)
        finally:
            with trio.move_on_after(_CLOSE_PATIENCE, shield=True):
                await _leave(link, daemon)
            feed.close()


async def _leave(link: Link, daemon: PrivateDaemon | None) -> None:
    """Close; and end our daemon if no guest needs it."""
    idle = False
    if daemon is not None and link.connected:
        pool = await link.pool()
        with suppress(libvirt.libvirtError, trio.TooSlowError), trio.fail_after(3):
            idle = await trio.to_thread.run_sync(_count_guests, pool, abandon_on_cancel=True) == 0
    await link.close()
    if daemon is not None:
        if idle:
            await daemon.stop()
        daemon.forget()


def _listener(feed: ChangeFeed, memory: Memory) -> Any:
    """Called in trio for each event of libvirt."""

    def on_event(kind: str, id: str, details: tuple[Any, ...]) -> None:
        if kind == "lifecycle":
            changed = _LIFECYCLE.get(details[0], ChangeKind.STATE)
        elif kind == "metadata":
            changed = ChangeKind.DEFINED
        elif kind == "agent":
            changed = ChangeKind.AGENT_UP if details[0] == _CONNECTED else ChangeKind.AGENT_DOWN
        elif details[-1] == "enospc":
            changed = ChangeKind.DISK_FULL
        else:
            return
        if changed in (ChangeKind.DEFINED, ChangeKind.UNDEFINED):
            memory.forget(id)
        feed.publish(Change(kind=changed, id=id))

    return on_event


_LIFECYCLE = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: ChangeKind.DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: ChangeKind.UNDEFINED,
}


def _learn(pool: Pool, uri: str, accelerator: Accelerator, *, enclosed: bool) -> Known:
    with pool.lend() as connection:
        return read_facts(connection, uri=uri, accelerator=accelerator, enclosed=enclosed)


def _count_guests(pool: Pool) -> int:
    with pool.lend() as connection:
        return connection.numOfDomains()


def _nothing() -> None:
    """Somebody else's libvirt cleans up after itself."""


async def _dial_here(port: int, host: str) -> trio.SocketStream:
    return await trio.open_tcp_stream(host, port)


def _configure_embedded(uri: str) -> None:
    """libvirt inside our own process starts from an empty root: give it what a private daemon gets, once."""
    for root in parse_qs(urlsplit(uri).query).get("root", ()):
        folder = Path(root) / "etc"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{root}/libvirt.log")  # not our stderr
        with suppress(FileExistsError), (folder / "qemu.conf").open("x") as file:
            file.write(QEMU_CONF)
