"""The way out for guests: `pasta` joins the enclosure's network to the machine's, unprivileged and without forwards.

It runs outside as the enclosure's user, ends when the keeper ends, and is started again when it dies. A machine may
have no network yet, so failure is never final: it is a sentence in `problem`, and another try a little later.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import trio

from .addresses import ROUTES, changes, ways_out
from .design import RESOLVER
from .keeping import Keeping
from .processes import alive
from .start import PATH, ended, program, start

_OPTIONS = (
    *("-f", "-q", "-e", "--config-net", "--no-map-gw", "--dns-forward", RESOLVER),
    *("-t", "none", "-u", "none", "-T", "none", "-U", "none"),
)
_TUN = "/dev/net/tun"
_FIRST_PAUSE, _LONGEST_PAUSE, _SETTLED = 0.5, 30.0, 5.0
_PRECEDENCE = 0.2  # for the daemon, which everybody waits for; a guest needs longer than this to want the network


class Outlet:
    """One `pasta`, watched. `process` is its pid and start time."""

    def __init__(self, keeping: Keeping) -> None:
        self._keeping = keeping
        self._died = False
        self._moved = trio.Event()

    @property
    def problem(self) -> str | None:
        if shutil.which("pasta", path=PATH) is None:
            return "Guests reach no outside network: pasta is not installed. Run: apt-get install passt"
        if self._died and self._keeping.identity.user is None and not os.access(_TUN, os.R_OK | os.W_OK):
            return f"Guests reach no outside network: {_TUN} may not be opened. Run as root: chmod 666 {_TUN}"
        if self._died:
            return "Guests reach no outside network: pasta ended; enclosure.log says why. It is tried again every 30 s."
        return None

    def up(self) -> bool:
        """Whether there is a way out of the enclosure's network."""
        return bool(ways_out(Path(f"/proc/{self._keeping.pid}/net")))

    @property
    def process(self) -> tuple[int, int] | None:
        """Its pid and start time; one that an earlier agent started is as good as a new one."""
        return self._keeping.record.outlet

    async def keep(self) -> None:
        """Have one running, for ever."""
        pause = _FIRST_PAUSE
        if not alive(self.process):
            await trio.sleep(_PRECEDENCE)
        while True:
            begin = trio.current_time()
            await self._live()
            pause = _FIRST_PAUSE if trio.current_time() - begin > 2 * _SETTLED else min(pause * 2, _LONGEST_PAUSE)
            with trio.move_on_after(pause):
                await self._moved.wait()

    async def follow(self) -> None:
        """For ever: when the machine's way out changes, start anew. pasta stays with what it found when it began."""
        with changes(ROUTES) as changed:
            while True:
                ways = ways_out()
                if ways and alive(self.process) and ways != frozenset(self._keeping.record.ways):
                    self.close()
                self._moved.set()
                self._moved = trio.Event()
                await changed()

    async def _live(self) -> None:
        """One life of it, from its start to its end."""
        pidfd, gate = self._open()
        if pidfd is None:
            return
        try:
            await self._keeping.attend()
            if gate is not None:
                with suppress(BrokenPipeError):
                    os.write(gate, b"!")
            with trio.move_on_after(_SETTLED):
                await trio.lowlevel.wait_readable(pidfd)
            self._died = not alive(self.process)
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
            if gate is not None:
                os.close(gate)
            self._reap()
        self._died = self._keeping.record.outlet is not None  # nobody ended it on purpose

    def close(self) -> None:
        """End it."""
        if self.process is not None and alive(self.process):
            os.kill(self.process[0], signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.process[0], 0)
        self._keeping.record.outlet = None

    def _open(self) -> tuple[int | None, int | None]:
        """A pidfd of the running one, or of a new one with the gate before which it waits; nothing if it cannot be."""
        gate = None
        try:
            if not alive(self.process):
                pasta = shutil.which("pasta", path=PATH)
                if pasta is None:
                    return None, None
                gate = self._start(pasta)
            return (os.pidfd_open(self.process[0]) if self.process else None), gate
        except OSError:
            self._died = True
            return None, None

    def _start(self, pasta: str) -> int:
        keeping = self._keeping
        spaces = f"/proc/{keeping.pid}/ns"
        command = [pasta, *_OPTIONS, "--userns", f"{spaces}/user", "--netns", f"{spaces}/net"]
        own_device = keeping.identity.user is not None and not _anyone_may_open_tun()
        scratch = str(Path(keeping.record.path).parent) if own_device else ""
        command = program("outlet", [str(keeping.identity.uid), str(keeping.identity.gid), scratch, *command])
        hearing, gate = os.pipe2(os.O_CLOEXEC)
        try:
            pid = start(command, output=keeping.log, errors=keeping.log, given=hearing)
            keeping.noted(pid, ways_out())
        finally:
            os.close(hearing)
        return gate

    def _reap(self) -> None:
        if self.process is not None and not alive(self.process):
            ended(self.process[0])


def _anyone_may_open_tun() -> bool:
    try:
        return Path(_TUN).stat().st_mode & 0o006 == 0o006
    except OSError:
        return False
