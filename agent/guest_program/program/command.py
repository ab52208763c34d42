"""A command: a process group of its own, with pipes or with a terminal."""

import fcntl
import os
import struct
from _signal import SIGKILL, SIGTERM  # pyright: ignore[reportMissingImports] - signal itself loads enum
from errno import EAGAIN, EINTR
from select import POLLIN, POLLOUT

from .process import Child, User
from .stream import ERR, KEPT, OUT, Program, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 32 * 1024
KILL_AFTER = 5.0
"""Seconds between SIGTERM and SIGKILL when a command has exceeded its timeout."""
TIMED_OUT = 124
SET_WINDOW_SIZE, BYTES_TO_READ = 0x5414, 0x541B  # ioctls of Linux on x86 and ARM
END_OF_INPUT = b"\x04"


class Command(Stream):
    """The output ends when the process that was started has ended: what it left in the background is not waited for."""

    def __init__(self, program: Program, number: int) -> None:
        Stream.__init__(self, program, number)
        self._pid = 0
        self._status: "int | None" = None
        self._timed_out = False
        self._timer: "list[Any] | None" = None
        self._terminal = False
        self._stdin = -1
        self._input = bytearray()
        self._input_ended = False
        self._outputs: "dict[int, int]" = {}  # descriptor: channel
        self._paused: "set[int]" = set()
        self._left: "dict[int, int]" = {}  # descriptor: bytes that the command had written when it ended

    def start(self, request: "dict[str, Any]") -> None:
        user = User(request["user"])
        env = user.environment()
        env.update(request["env"])
        self._terminal = bool(request["terminal"])
        ends: "list[int]" = []
        try:
            self._open_ends(request, ends)
            if self._terminal:
                env.setdefault(b"TERM", b"xterm-256color")
            child = Child(request["argv"], user, env, (ends[0], ends[1], ends[2]))
            child.workdir, child.terminal = request["workdir"] or env[b"HOME"], self._terminal
            self._pid = child.start()
        finally:
            for fd in set(ends):
                os.close(fd)
        for fd in set(self._outputs) | {self._stdin}:
            os.set_blocking(fd, False)
        for fd in self._outputs:
            self.program.watch(fd, POLLIN, lambda events, fd=fd: self._ready(fd, events))
        self.program.child(self._pid, self._ended)
        if request["timeout"]:
            self._timer = self.program.later(request["timeout"], self._time_out)
        self.is_open()
        if request["stdin"]:
            self.take(request["stdin"])
        if request["close"]:
            self.take_end()

    def _open_ends(self, request: "dict[str, Any]", ends: "list[int]") -> None:
        """Open the terminal or the pipes: what is ours belongs to this stream at once, the child's go to `ends`."""
        if self._terminal:
            self._stdin, slave = os.openpty()
            ends += [slave] * 3
            self._outputs[self._stdin] = OUT
            self._resize(self._stdin, request)
            return
        end, self._stdin = os.pipe()
        ends.append(end)
        for channel in (OUT, ERR):
            ours, end = os.pipe()
            ends.append(end)
            self._outputs[ours] = channel

    # --- output ---

    def _ready(self, fd: int, events: int) -> None:
        if events & POLLOUT:
            self._write()
        if events & ~POLLOUT and fd in self._outputs:
            self._read(fd)

    def _read(self, fd: int) -> bool:
        """Return whether there may be more to read now."""
        room = self.room()
        if not room:
            self._paused.add(fd)
            self._watch(fd)
            return False
        try:
            data = os.read(fd, min(CHUNK, room, self._left.get(fd, CHUNK)))
        except OSError as error:
            if error.errno in (EAGAIN, EINTR):
                return False
            data = b""  # EIO: the last process has closed the terminal
        if data:
            self.put(self._outputs[fd], data)
            if fd in self._left:
                self._left[fd] -= len(data)
            return True
        self._close(fd)
        return False

    def has_room(self) -> None:
        for fd in list(self._paused):
            self._paused.discard(fd)
            self._watch(fd)
        if self._status is not None:
            self._drain()

    def _watch(self, fd: int) -> None:
        events = POLLIN if fd in self._outputs and fd not in self._paused else 0
        if fd == self._stdin and self._input:
            events |= POLLOUT
        if events:
            self.program.watch(fd, events, lambda found: self._ready(fd, found))
        else:
            self.program.unwatch(fd)

    # --- input ---

    def take(self, data: "bytes | memoryview") -> None:
        if self._stdin >= 0 and len(self._input) <= KEPT:
            self._input += data
            self._write()

    def take_end(self) -> None:
        if not self._input_ended:
            self._input_ended = True
            if self._terminal:
                self._input += END_OF_INPUT
            self._write()

    def waiting(self) -> int:
        return len(self._input) if self._stdin >= 0 else 0

    def _write(self) -> None:
        if self._stdin < 0:
            return
        try:
            while self._input:
                del self._input[: os.write(self._stdin, self._input[:CHUNK])]
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                self._close_stdin()  # EPIPE: the command reads no more
                return
        if self._input_ended and not self._input and not self._terminal:
            self._close_stdin()
            return
        self._watch(self._stdin)

    def _close_stdin(self) -> None:
        self._input = bytearray()
        if self._stdin in self._outputs:
            return  # a terminal is both
        self._close(self._stdin)
        self._stdin = -1

    def _close(self, fd: int) -> None:
        self.program.unwatch(fd)
        self._outputs.pop(fd, None)
        self._paused.discard(fd)
        if fd == self._stdin:
            self._stdin = -1
        os.close(fd)

    # --- signals and the end ---

    def control(self, request: "dict[str, Any]") -> None:
        if request["op"] == "signal":
            self._kill(request["signal"])
        elif request["op"] == "resize" and self._terminal and self._stdin >= 0:
            self._resize(self._stdin, request)

    def _resize(self, fd: int, request: "dict[str, Any]") -> None:
        fcntl.ioctl(fd, SET_WINDOW_SIZE, struct.pack("HHHH", request["rows"], request["columns"], 0, 0))

    def _kill(self, number: int) -> None:
        if self._status is None and self._pid:
            try:
                os.killpg(self._pid, number)
            except OSError:
                pass  # it ends at this moment

    def _time_out(self) -> None:
        if self._status is None:
            self._timed_out = True
            self._kill(SIGTERM)
            self.program.later(KILL_AFTER, lambda: self._kill(SIGKILL))

    def _ended(self, status: int) -> None:
        self._status = status
        for fd in self._outputs:
            (self._left[fd],) = struct.unpack("i", fcntl.ioctl(fd, BYTES_TO_READ, bytes(4)))
        self._drain()

    def _drain(self) -> None:
        """Read what the command wrote before it ended, as far as there is room; the end is said when it is read."""
        for fd in list(self._outputs):
            while self._left[fd] and self._read(fd):
                pass
            if fd in self._paused:
                return
        self._close_all()
        if self._timer is not None:
            self.program.never(self._timer)
        status = self._status or 0
        signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = None if signal else os.WEXITSTATUS(status)
        self.end(code=TIMED_OUT if self._timed_out else code, signal=signal)

    def close(self) -> None:
        self._kill(SIGKILL)
        self._close_all()

    def _close_all(self) -> None:
        for fd in list(self._outputs):
            self._close(fd)
        if self._stdin >= 0:
            self._close(self._stdin)
