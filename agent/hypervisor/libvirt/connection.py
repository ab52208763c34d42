"""The connection to libvirt: opened, watched, and restored for as long as the agent runs; and libvirt's event loop.

The event loop is one native thread per process, from the first connection until the process ends. A loop inside trio
works too, but every remote call then passes through Python twice: half the calls a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

import libvirt
import structlog
import trio

from ....protocols.errors import HypervisorDown
from ...backoff import Backoff
from .daemon import PrivateDaemon
from .errors import ignoring, map_error
from .pool import ConnectionPool

log = structlog.get_logger(__name__)

_KEEPALIVE = (2, 3)  # interval in seconds, count: a daemon that misses all of them is taken for dead
_RECONNECT_GRACE = 2.0  # how long a call waits for a connection that is being restored
_CLOSE_TIMEOUT = 3.0
_POLL_INTERVAL = 0.01
# A connection that lasted `steady` seconds before it broke is restored after the first pause again.
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 0.05, 10.0, 10.0
# A daemon that was just started may be probing QEMU for the first time; one that ran before has no such excuse.
_OPEN_TIMEOUT, _REOPEN_TIMEOUT = 60.0, 3.0

EVENTS = {
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE: "lifecycle",
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON: "io_error",
    libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE: "agent",
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: "metadata",
}
_P = TypeVarTuple("_P")
T = TypeVar("T")
EventHandler = Callable[[str, str, tuple[Any, ...]], None]

_loop_lock = threading.Lock()
_loop_runs = False


class LibvirtConnection:
    """`on_event` is called in trio with the kind of event, the domain's id, and libvirt's details."""

    def __init__(self, uri: str, on_event: EventHandler, daemon: PrivateDaemon | None = None) -> None:
        self._uri = uri
        self._on_event = on_event
        self._daemon = daemon
        self._connection: libvirt.virConnect | None = None  # for events alone; calls use the pool
        self._pool: ConnectionPool | None = None
        self._callbacks: list[int] = []
        self._up, self._lost = trio.Event(), trio.Event()
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, steady=_STEADY)
        self._opened_at = trio.current_time()
        self.problem: str | None = None  # why it is down

    @property
    def connected(self) -> bool:
        return self._pool is not None

    async def pool(self) -> ConnectionPool:
        """Raises: HypervisorDown when the connection is down and not restored within the grace period."""
        with trio.move_on_after(_RECONNECT_GRACE):
            await self._up.wait()
        if self._pool is None:
            reason = f": {self.problem}" if self.problem else ""
            raise HypervisorDown(f"libvirt cannot be reached; the agent tries again by itself{reason}")
        return self._pool

    async def run(self, on_down: Callable[[], None], on_up: Callable[[], Awaitable[None]]) -> None:
        """Restore the connection whenever it breaks, with backoff; never returns.

        `on_down` is called at each loss. `on_up` is called at each return; when it raises HypervisorDown, it was none.
        """
        while True:
            await self._lost.wait()
            log.warning("the connection to libvirt is lost", uri=self._uri)
            await self.close()
            on_down()
            await trio.sleep(self._backoff.next(trio.current_time() - self._opened_at))
            await self._restore(on_up)
            log.info("the connection to libvirt is back", uri=self._uri)

    async def _restore(self, on_up: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await self.open()
                return await on_up()
            except HypervisorDown as error:
                log.debug("libvirt is still down", reason=error.message)
                await self.close()
                self.fail(error.message)
            await trio.sleep(self._backoff.next())

    def fail(self, problem: str) -> None:
        """Mark the connection as down for this reason: `run` restores it."""
        self.problem = problem
        self._lost.set()

    async def open(self) -> None:
        """Connect, starting the daemon if it is ours. Raises: HypervisorDown."""
        run_event_loop()
        self._lost = trio.Event()
        token, lost = trio.lowlevel.current_trio_token(), self._lost
        try:
            if self._daemon is None:
                connection = await self._attempt(_OPEN_TIMEOUT)
            else:
                connection = await self._open_daemon(self._daemon)
            await self._in_thread(_REOPEN_TIMEOUT, self._watch, connection, token, lost)
        except libvirt.libvirtError as error:
            raise HypervisorDown("libvirt closed the new connection at once") from error
        except trio.TooSlowError:
            raise HypervisorDown("libvirt listens, but does not answer") from None
        except OSError as error:
            raise HypervisorDown(f"the private libvirtd cannot be started: {error.strerror or error}") from error
        self._connection, self._opened_at, self.problem = connection, trio.current_time(), None
        self._pool = ConnectionPool(self._uri, connection if _in_process(self._uri) else None)
        self._up.set()

    async def _open_daemon(self, daemon: PrivateDaemon) -> libvirt.virConnect:
        with trio.move_on_after(_OPEN_TIMEOUT):
            while True:
                await daemon.ensure()
                if daemon.listener() is None:
                    await trio.sleep(_POLL_INTERVAL)
                    continue
                try:
                    connection = await self._attempt(_OPEN_TIMEOUT if daemon.is_new else _REOPEN_TIMEOUT)
                except trio.TooSlowError:
                    log.warning("the private libvirtd hangs and is replaced")
                    await daemon.kill()
                else:
                    daemon.is_new = False
                    return connection
        raise HypervisorDown("the private libvirtd does not come up; see daemon.log in the node's hypervisor folder")

    async def _attempt(self, timeout: float) -> libvirt.virConnect:
        """Raises: HypervisorDown, trio.TooSlowError."""
        try:
            return await self._in_thread(timeout, libvirt.open, self._uri)
        except libvirt.libvirtError as error:
            known = map_error(error, "connect to libvirt")
            raise known if isinstance(known, HypervisorDown) else HypervisorDown(known.message) from error

    async def _in_thread(self, timeout: float, work: Callable[[*_P], T], *arguments: *_P) -> T:
        # Not in a lane: lanes may be full of calls that wait for this very connection to die.
        with trio.fail_after(timeout):
            return await trio.to_thread.run_sync(work, *arguments, abandon_on_cancel=True)

    def _watch(self, connection: libvirt.virConnect, token: trio.lowlevel.TrioToken, lost: trio.Event) -> None:
        """Register all callbacks and the keepalive; those that a driver lacks are skipped."""

        def soon(function: Callable[..., object], *arguments: Any) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function, *arguments)

        def on_event(_: libvirt.virConnect, domain: libvirt.virDomain, *details: Any) -> None:
            soon(self._on_event, details[-1], domain.UUIDString(), details[:-1])

        self._callbacks = []
        for event, kind in EVENTS.items():
            with ignoring(libvirt.VIR_ERR_NO_SUPPORT):
                self._callbacks.append(connection.domainEventRegisterAny(None, event, on_event, kind))
        with ignoring(libvirt.VIR_ERR_NO_SUPPORT):
            connection.registerCloseCallback(lambda *_: soon(lost.set), None)
        with ignoring(libvirt.VIR_ERR_NO_SUPPORT):
            connection.setKeepAlive(*_KEEPALIVE)

    async def close(self) -> None:
        """Close the connection, and deregister the callbacks, which would keep it open."""
        connection, pool = self._connection, self._pool
        self._connection = self._pool = None
        self._up = trio.Event()
        if connection is not None and pool is not None:
            with suppress(trio.TooSlowError):
                await self._in_thread(_CLOSE_TIMEOUT, _disconnect, connection, self._callbacks, pool)


def _in_process(uri: str) -> bool:
    return uri.startswith(("qemu:///embed", "test:"))


def _disconnect(connection: libvirt.virConnect, callbacks: list[int], pool: ConnectionPool) -> None:
    pool.close()
    for callback in callbacks:
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback)
    with suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with suppress(libvirt.libvirtError):
        connection.close()


def run_event_loop() -> None:
    """Start libvirt's event loop, before the first `libvirt.open` of the process."""
    global _loop_runs
    with _loop_lock:
        if not _loop_runs:
            _loop_runs = True
            libvirt.registerErrorHandler(lambda *_: None, None)  # errors come as exceptions, not on stderr
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_loop, name="libvirt-events", daemon=True).start()


def _loop() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            log.warning("libvirt's event loop failed", text=str(error))
            time.sleep(0.1)
