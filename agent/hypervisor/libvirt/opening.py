"""Open libvirt as a hypervisor: connect, learn what it can do, listen, keep the connection; undo it all at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
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
from .adapter import LibvirtHypervisor
from .daemon import QEMU_CONF, Place, PrivateDaemon
from .dialling import LOOPBACK, Dialler
from .errors import rename
from .facts import Accelerator, read_facts
from .lanes import Lane, Lanes
from .link import Link
from .reading import Memory
from .reaper import burying_guests

log = structlog.get_logger(__name__)
_CLOSE_PATIENCE = 15.0
_CONNECTED = 1  # of VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_*


@asynccontextmanager
async def open_private(place: Place, *, accelerator: Accelerator = "auto") -> AsyncIterator[LibvirtHypervisor]:
    """A libvirtd of our own in `place`; the one of a former agent if it still runs. It ends with us unless guests run.

    Raises: HypervisorDown.
    """
    daemon = PrivateDaemon(place)
    await daemon.prepare()
    async with _open(
        daemon.uri, daemon, Dialler(place.dial), accelerator, enclosed=place.kind == "namespaces"
    ) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def open_uri(uri: str, *, accelerator: Accelerator = "auto") -> AsyncIterator[LibvirtHypervisor]:
    """Any libvirt, by its URI. Raises: HypervisorDown."""
    if urlsplit(uri).path == "/embed":
        await trio.to_thread.run_sync(_configure_embedded, uri)
    async with _open(uri, None, Dialler(_dial_here), accelerator, enclosed=False) as hypervisor:
        yield hypervisor


@asynccontextmanager
async def _open(
    uri: str, daemon: PrivateDaemon | None, dialler: Dialler, accelerator: Accelerator, *, enclosed: bool
) -> AsyncIterator[LibvirtHypervisor]:
    feed, memory, lanes = ChangeFeed(), Memory(), Lanes()
    link = Link(uri, _listener(feed, memory), daemon)

    def on_change() -> None:
        memory.forget_all()
        feed.publish(Change(kind=ChangeKind.RESYNC if link.connected else ChangeKind.DOWN))

    with burying_guests():
        try:
            await link.open()
            learn = partial(read_facts, uri=uri, accelerator=accelerator, enclosed=enclosed)
            try:
                known = await lanes.run(Lane.SLOW, partial(learn, await link.connection()))
            except libvirt.libvirtError as error:
                raise HypervisorDown(rename(error, "learn what libvirt can do").message) from error
            async with open_background() as nursery:
                nursery.start_soon(link.keep, on_change)
                yield LibvirtHypervisor(link, lanes, memory, feed, known, dialler)
        finally:
            with trio.move_on_after(_CLOSE_PATIENCE, shield=True):
                await _leave(link, daemon)
            feed.close()


async def _leave(link: Link, daemon: PrivateDaemon | None) -> None:
    """Close; and end our daemon if no guest needs it."""
    idle = False
    if daemon is not None and link.connected:
        connection = await link.connection()
        with suppress(libvirt.libvirtError, trio.TooSlowError), trio.fail_after(3):
            idle = await trio.to_thread.run_sync(connection.numOfDomains, abandon_on_cancel=True) == 0
        del connection
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


async def _dial_here(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream(LOOPBACK, port)


def _configure_embedded(uri: str) -> None:
    """libvirt inside our own process starts from an empty root: give it what a private daemon gets, once."""
    for root in parse_qs(urlsplit(uri).query).get("root", ()):
        folder = Path(root) / "etc"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), (folder / "qemu.conf").open("x") as file:
            file.write(QEMU_CONF)
