"""The sandbox's network as the agent maintains it: egress by `pasta`, blocked routes to the host's own addresses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import trio

from ...backoff import Backoff
from ...environment import PATH
from . import processes
from .client import SupervisorClient
from .host_network import ADDRESSES, ROUTES, blocked_prefixes, default_routes, watch_changes
from .policy import RESOLVER
from .spawn import ended, finish, program, start

_OPTIONS = (
    *("-f", "-q", "-e", "--config-net", "--no-map-gw", "--dns-forward", RESOLVER),
    *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
)
_TUN = "/dev/net/tun"
_FIRST_PAUSE, _LONGEST_PAUSE, _STABLE_AFTER = 0.5, 30.0, 5.0
_START_DELAY = 0.2  # the daemon starts first: everybody waits for it, and a guest needs longer than this to boot


class Egress:
    """Runs one `pasta`, unprivileged and without forwards, and restarts it with backoff.

    It runs outside as the sandbox's user and ends with the supervisor. A host may have no network yet, so failure is
    never final: it is a sentence in `problem`, and another try later.
    """

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client
        self._died = False
        self._routes_changed = trio.Event()

    @property
    def problem(self) -> str | None:
        if shutil.which("pasta", path=PATH) is None:
            return "Guests reach no outside network: pasta is not installed. Run: apt-get install passt"
        if self._died and self._client.identity.user is None and not os.access(_TUN, os.R_OK | os.W_OK):
            return f"Guests reach no outside network: {_TUN} may not be opened. Run as root: chmod 666 {_TUN}"
        if self._died:
            return "Guests reach no outside network: pasta ended; sandbox.log says why. It is tried again within 45 s."
        return None

    def is_up(self) -> bool:
        """Return whether the sandbox's network has a default route."""
        return bool(default_routes(Path(f"/proc/{self._client.pid}/net")))

    @property
    def process(self) -> tuple[int, int] | None:
        """Its pid and start time, also of one that an earlier agent started."""
        return self._client.record.egress

    async def run(self) -> None:
        """Keep one `pasta` running; never returns."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, steady=2 * _STABLE_AFTER)
        if not processes.alive(self.process):
            await trio.sleep(_START_DELAY)
        while True:
            begin = trio.current_time()
            await self._run_once()
            with trio.move_on_after(backoff.next(trio.current_time() - begin)):
                await self._routes_changed.wait()

    async def follow_routes(self) -> None:
        """Restart it when the host's default routes change (pasta keeps those it started with); never returns."""
        with watch_changes(ROUTES) as changed:
            while True:
                routes = default_routes()
                if routes and processes.alive(self.process) and routes != frozenset(self._client.record.default_routes):
                    self.close()
                self._routes_changed.set()
                self._routes_changed = trio.Event()
                await changed()

    async def _run_once(self) -> None:
        """Start it, or find it running, and wait for its end."""
        pidfd, gate = self._open()
        if pidfd is None:
            return
        try:
            await self._client.attend_egress()
            if gate is not None:
                with suppress(BrokenPipeError):
                    os.write(gate, b"!")
            with trio.move_on_after(_STABLE_AFTER):
                await trio.lowlevel.wait_readable(pidfd)
            self._died = not processes.alive(self.process)
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
            if gate is not None:
                os.close(gate)
            self._reap()
        self._died = self._client.record.egress is not None  # else `close` ended it

    def close(self) -> None:
        """Kill it."""
        if self.process is not None and processes.alive(self.process):
            os.kill(self.process[0], signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.process[0], 0)
        self._client.record.egress = None

    def _open(self) -> tuple[int | None, int | None]:
        """Return a pidfd of the running process, or of a new one with its gate; (None, None) if there can be none."""
        gate = None
        try:
            if not processes.alive(self.process):
                pasta = shutil.which("pasta", path=PATH)
                if pasta is None:
                    return None, None
                gate = self._start(pasta)
            return (os.pidfd_open(self.process[0]) if self.process else None), gate
        except OSError:
            if gate is not None:
                os.close(gate)
            self._died = True
            return None, None

    def _start(self, pasta: str) -> int:
        """Start it behind a gate (a pipe): it waits for one byte there, or ends when the agent does before."""
        client = self._client
        namespaces = f"/proc/{client.pid}/ns"
        command = [pasta, *_OPTIONS, "--userns", f"{namespaces}/user", "--netns", f"{namespaces}/net"]
        own_device = client.identity.user is not None and not _anyone_may_open_tun()
        scratch = str(Path(client.record.path).parent) if own_device else ""
        arguments = [str(client.identity.uid), str(client.identity.gid), scratch, *command]
        read_end, gate = os.pipe2(os.O_CLOEXEC)
        try:
            command = program("programs", "run_pasta", arguments)
            pid = start(command, output=client.log, errors=client.log, given=read_end)
            client.save_egress(pid, default_routes())
        except BaseException:
            os.close(gate)
            raise
        finally:
            os.close(read_end)
        return gate

    def _reap(self) -> None:
        if self.process is not None and not processes.alive(self.process):
            ended(self.process[0])


class BlockedRoutes:
    """Keeps the host's own addresses out of the guests' reach while they come and go."""

    def __init__(self, client: SupervisorClient) -> None:
        self._client = client
        self.problem: str | None = None

    async def run(self) -> None:
        """Update the blocked routes at each change of the host's addresses; never returns."""
        with watch_changes(ADDRESSES) as changed:
            while True:
                await self._update()
                await changed()

    async def _update(self) -> None:
        wanted, present = blocked_prefixes(), frozenset(self._client.record.blocked)
        changes = {"add": sorted(wanted - present), "remove": sorted(present - wanted)}
        if not any(changes.values()):
            return
        command = program("programs", "change_blocked_routes", [str(self._client.pid), json.dumps(changes)])
        try:
            code = await finish(start(command, output=self._client.log, errors=self._client.log))
        except OSError as error:
            code = error.errno or 1
        if code == 0:
            self._client.save_blocked(wanted)
        self.problem = (
            None if code == 0 else "Guests may reach this machine by its own addresses; sandbox.log says why."
        )


def _anyone_may_open_tun() -> bool:
    try:
        return Path(_TUN).stat().st_mode & 0o006 == 0o006
    except OSError:
        return False
