"""The guest program as a process of this machine: what a simulated guest has on its channel when it is asked to.

Commands run on this machine, in the folder `guest` of the VM's own. As with a real virtio port, what the program sends
while nobody is connected is dropped, and the program does not notice that the host has connected again.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import trio

from ...guest_program.bundle import program_zip, start_code

CHUNK = 64 << 10
END_TIMEOUT = 5.0
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class GuestProcess:
    """One run of the program. `serve` connects a host to it, one at a time."""

    def __init__(self, home: Path) -> None:
        self._home = home
        near, far = socket.socketpair()
        self._port = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self._far = far
        self._host: trio.SocketStream | None = None
        self._process: trio.Process | None = None
        self._paused = False

    async def run(self) -> None:
        """Run it until it is cancelled; every process that it started ends with it."""
        try:
            await self._start()
            while data := await self._receive():
                if self._host is not None:
                    with suppress(*_BROKEN):
                        await self._host.send_all(data)
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _receive(self) -> bytes:
        """What the program sends, nothing at its end, be it killed with bytes that it has not read."""
        try:
            return bytes(await self._port.receive_some(CHUNK))
        except trio.BrokenResourceError:
            return b""

    async def serve(self, host: trio.SocketStream) -> None:
        """Carry the bytes of one connection."""
        self._host = host
        try:
            while data := await host.receive_some(CHUNK):
                await self._port.send_all(data)
        finally:
            self._host = None

    @property
    def runs(self) -> bool:
        """Whether the process has started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """The guest's CPU stands still: of the guest only the program does."""
        self._paused = True
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._paused = False
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the program, as a reset does; `run` ends."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def _start(self) -> None:
        archive = self._home / ".program.zip"
        self._home.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(program_zip())
        code = start_code(str(archive), f"fd:{self._far.fileno()}")
        self._process = await trio.lowlevel.open_process(
            [sys.executable, "-S", "-E", "-c", code],
            pass_fds=[self._far.fileno()],
            cwd=self._home,
            env={"HOME": str(self._home), "PATH": os.environ.get("PATH", os.defpath)},
        )
        self._far.close()

    async def _end(self) -> None:
        self._far.close()
        await trio.aclose_forcefully(self._port)
        if self._process is None:
            return
        if self._paused:
            self._signal(signal.SIGCONT)
        with trio.move_on_after(END_TIMEOUT):
            await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()
