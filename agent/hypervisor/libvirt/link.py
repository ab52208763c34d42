"""The connection to libvirt: opened, watched, and opened again for as long as the agent lives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

import libvirt
import structlog
import trio

from ....protocols.errors import HypervisorDown
from .daemon import PrivateDaemon
from .errors import passing_over, rename
from .loop import run_event_loop
from .pool import Pool

log = structlog.get_logger(__name__)

_KEEPALIVE = (2, 3)  # a daemon that answers nothing for 2 s, three times over, is taken for dead
_GRACE = 2.0  # how long a call waits for a link that is being restored
_CLOSE_PATIENCE = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
# A daemon that was just started may be looking at QEMU for the first time; one that ran before has no such excuse.
_OPEN_PATIENCE, _REOPEN_PATIENCE = 60.0, 3.0

EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: "lifecycle",
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON: "io_error",
    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE: "agent",
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: "metadata",
}
_P = TypeVarTuple("_P")
T = TypeVar("T")
EventHandler = Callable[[str, str, tuple[Any, ...]], None]


class Link:
    """`on_event` is called in trio with the kind of event, the domain's id, and what libvirt told of it."""

    def __init__(self, uri: str, on_event: EventHandler, daemon: PrivateDaemon | None = None) -> None:
        self._uri = uri
        self._on_event = on_event
        self._daemon = daemon
        self._connection: libvirt.virConnect | None = None  # only listens; calls have connections of their own
        self._pool: Pool | None = None
        self._callbacks: list[int] = []
        self._up, self._lost = trio.Event(), trio.Event()

    @property
    def connected(self) -> bool:
        return self._pool is not None

    async def pool(self) -> Pool:
        """Raises: HypervisorDown when the link is down and does not come back at once."""
        with trio.move_on_after(_GRACE):
            await self._up.wait()
        if self._pool is None:
            raise HypervisorDown("libvirt cannot be reached; the agent tries again by itself")
        return self._pool

    async def keep(self, on_change: Callable[[], None]) -> None:
        """Restore the link whenever it breaks, for ever. `on_change` is called at each loss and each return."""
        while True:
            await self._lost.wait()
            log.warning("the connection to libvirt is lost", uri=self._uri)
            await self.close()
            on_change()
            await self._restore()
            log.info("the connection to libvirt is back", uri=self._uri)
            on_change()

    async def _restore(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.open()
            except HypervisorDown as error:
                log.debug("libvirt is still down", reason=error.message)
            await trio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def open(self) -> None:
        """Connect, starting the daemon if it is ours. Raises: HypervisorDown."""
        run_event_loop()
        self._lost = trio.Event()
        token, lost = trio.lowlevel.current_trio_token(), self._lost
        try:
            if self._daemon is None:
                connection = await self._attempt(_OPEN_PATIENCE)
            else:
                connection = await self._open_daemon(self._daemon)
            await self._in_thread(_REOPEN_PATIENCE, self._watch, connection, token, lost)
        except libvirt.libvirtError as error:
            raise HypervisorDown("libvirt went away as soon as it was there") from error
        except trio.TooSlowError:
            raise HypervisorDown("libvirt listens, but does not answer") from None
        except OSError as error:
            raise HypervisorDown(f"the private libvirtd cannot be started: {error.strerror or error}") from error
        self._connection = connection
        self._pool = Pool(self._uri, connection if _in_process(self._uri) else None)
        self._up.set()

    async def _open_daemon(self, daemon: PrivateDaemon) -> libvirt.virConnect:
        with trio.move_on_after(_OPEN_PATIENCE):
            while True:
                await daemon.ensure()
                if daemon.listener() is None:
                    await trio.sleep(_FIRST_PAUSE)
                    continue
                try:
                    connection = await self._attempt(_OPEN_PATIENCE if daemon.is_new else _REOPEN_PATIENCE)
                except trio.TooSlowError:
                    log.warning("the private libvirtd hangs and is replaced")
                    await daemon.kill()
                else:
                    daemon.is_new = False
                    return connection
        raise HypervisorDown("the private libvirtd does not come up; see daemon.log in the node's hypervisor folder")

    async def _attempt(self, patience: float) -> libvirt.virConnect:
        """Raises: HypervisorDown, trio.TooSlowError."""
        try:
            return await self._in_thread(patience, libvirt.open, self._uri)
        except libvirt.libvirtError as error:
            known = rename(error, "connect to libvirt")
            raise known if isinstance(known, HypervisorDown) else HypervisorDown(known.message) from error

    async def _in_thread(self, patience: float, work: Callable[[*_P], T], *arguments: *_P) -> T:
        # Not in a lane: lanes may be full of calls that wait for this very connection to die.
        with trio.fail_after(patience):
            return await trio.to_thread.run_sync(work, *arguments, abandon_on_cancel=True)

    def _watch(self, connection: libvirt.virConnect, token: trio.lowlevel.TrioToken, lost: trio.Event) -> None:
        """Register for all that we want to be told. Drivers without an event are no worse for it."""

        def soon(function: Callable[..., object], *arguments: Any) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function, *arguments)

        def on_event(_: libvirt.virConnect, domain: libvirt.virDomain, *details: Any) -> None:
            soon(self._on_event, details[-1], domain.UUIDString(), details[:-1])

        self._callbacks = []
        for event, kind in EVENTS.items():
            with passing_over(libvirt.VIR_ERR_NO_SUPPORT):
                self._callbacks.append(connection.domainEventRegisterAny(None, event, on_event, kind))
        with passing_over(libvirt.VIR_ERR_NO_SUPPORT):
            connection.registerCloseCallback(lambda *_: soon(lost.set), None)
        with passing_over(libvirt.VIR_ERR_NO_SUPPORT):
            connection.setKeepAlive(*_KEEPALIVE)

    async def close(self) -> None:
        """Let go of the connection and of every callback that would keep it alive."""
        connection, pool = self._connection, self._pool
        self._connection = self._pool = None
        self._up = trio.Event()
        if connection is not None and pool is not None:
            with suppress(trio.TooSlowError):
                await self._in_thread(_CLOSE_PATIENCE, _let_go, connection, self._callbacks, pool)


def _in_process(uri: str) -> bool:
    return uri.startswith(("qemu:///embed", "test:"))


def _let_go(connection: libvirt.virConnect, callbacks: list[int], pool: Pool) -> None:
    pool.close()
    for callback in callbacks:
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with suppress(libvirt.libvirtError):
        connection.close()
