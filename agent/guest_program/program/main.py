"""The loop of the program: one port, many streams, the children's ends, and what is due at a time."""

import os
from _signal import SIG_IGN, SIGCHLD, SIGHUP, SIGPIPE, set_wakeup_fd, signal  # pyright: ignore[reportMissingImports] - signal itself loads enum
from errno import EAGAIN, EINTR, EINVAL
from select import POLLHUP, POLLIN, POLLOUT, poll
from struct import error as struct_error
from time import monotonic

from . import packing, wire
from .command import Command
from .connection import Connection, SshServer
from .content import ReadFile, SummedReadFile, WriteFile
from .files import FileCall, discard
from .report import report
from .stream import ACK_BODY, DamagedError, Program, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

VERSION = 1
KINDS = {
    "exec": Command, "read": ReadFile, "write": WriteFile, "call": FileCall, "dial": Connection, "ssh": SshServer,
}  # fmt: skip
MAX_STREAMS = 1024
FULL = 256 * 1024
"""Bytes that wait for the port, above which no output of streams is added."""
JOINED = 4096
"""Bytes of short frames that are written as one: a virtio port costs as much for each as for 32 KiB."""
LOOK_FOR_HOST = 0.5
REPORT_EVERY = 2.0


class GuestProgram(Program):
    """Serves one port until the process ends."""

    def __init__(self, port: int, lasting: bool) -> None:
        self._port, self._lasting = port, lasting
        self._instance = os.urandom(16)
        self._reader = wire.Reader()
        self._out: "list[bytes | memoryview]" = [wire.ZEROS + wire.ANNOUNCE + self._instance]
        self._receiving = self._more = False
        self._watched = 0
        self._streams: "dict[int, Stream]" = {}
        self._turn = 0
        self._poll = poll()
        self._calls: "dict[int, Callable[..., None]]" = {}
        self._timers: "list[list[Any]]" = []
        self._children: "dict[int, Callable[..., None]]" = {}
        self._partials: "dict[bytes, float]" = {}
        self._connected = self._resumed = False
        self._reported: "dict[str, Any] | None" = None
        self._wakeup, wakeup = os.pipe()
        for fd in (port, self._wakeup, wakeup):
            os.set_blocking(fd, False)
        set_wakeup_fd(wakeup)
        signal(SIGCHLD, lambda number, frame: None)
        signal(SIGPIPE, SIG_IGN)
        signal(SIGHUP, SIG_IGN)
        self.watch(self._wakeup, POLLIN, self._woken)

    # --- for the streams ---

    def watch(self, fd: int, events: int, call: "Callable[..., None]") -> None:
        self._poll.register(fd, events)
        self._calls[fd] = call

    def unwatch(self, fd: int) -> None:
        if self._calls.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, seconds: float, call: "Callable[..., None]") -> "list[Any]":
        timer = [monotonic() + seconds, call]
        self._timers.append(timer)
        self._timers.sort(key=lambda one: one[0])
        return timer

    def never(self, timer: "list[Any]") -> None:
        self._timers = [one for one in self._timers if one is not timer]

    def say(self, stream: int, body: "dict[str, Any]") -> None:
        if self._resumed:
            self._send(wire.message(stream, packing.pack(body)))

    def child(self, pid: int, call: "Callable[..., None]") -> None:
        self._children[pid] = call

    def partial(self, path: bytes, seconds: float) -> None:
        self._partials[path] = monotonic() + seconds
        self.later(seconds, lambda: self._discard_partial(path))

    # --- the loop ---

    def run(self) -> None:
        self.later(0, self._report)
        self.later(0, self._look_for_host)
        while True:
            now = monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._timers.pop(0)[1]()
            self._fill()
            self._write()
            self._watch_port()
            # Acknowledgements that are held back are due when nothing more has come.
            wait = 0 if self._receiving or self._more else int(max(0.0, self._timers[0][0] - monotonic()) * 1000) + 1
            self._receiving = False
            for fd, events in self._poll.poll(wait):
                call = self._calls.get(fd)
                if call is not None:
                    call(events)

    def _watch_port(self) -> None:
        events = POLLIN | (POLLOUT if self._out else 0) if self._connected else 0
        if events != self._watched:
            self._watched = events
            if events:
                self.watch(self._port, events, self._on_port)
            else:
                self.unwatch(self._port)

    def _look_for_host(self) -> None:
        """A port without a host is always ready: it is looked at from time to time."""
        if not self._connected:
            one = poll()
            one.register(self._port, POLLIN)
            self._connected = not any(events & POLLHUP for _, events in one.poll(0))
        if not self._connected:
            self.later(LOOK_FOR_HOST, self._look_for_host)

    def _gone(self) -> None:
        """The host has closed the port; a socket's other end does not come back."""
        if not self._lasting:
            for stream in self._streams.values():
                stream.close()
            raise SystemExit
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connected:
            self._connected = self._resumed = False
            self._watch_port()
            self._reader.reset()
            self._out = []
            self.later(LOOK_FOR_HOST, self._look_for_host)

    def _woken(self, events: int) -> None:
        try:
            os.read(self._wakeup, 4096)
        except OSError:
            pass  # read before
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.pop(pid)(status)

    # --- the port ---

    def _on_port(self, events: int) -> None:
        if events & POLLHUP:
            self._gone()
        elif events & POLLIN:
            self._read()

    def _send(self, data: "bytes | memoryview") -> None:
        last = self._out[-1] if self._out else data
        if isinstance(last, bytes) and last is not data and len(last) + len(data) <= JOINED:
            self._out[-1] = last + data
        elif data:
            self._out.append(data)

    def _write(self) -> None:
        """Write until the port takes no more: 32 KiB at a time, be they parts of a `writev` or not."""
        out = self._out
        try:
            while out and self._connected:
                data = out[0]
                done = os.write(self._port, data)
                if done == len(data):
                    del out[0]
                else:
                    out[0] = memoryview(data)[done:]
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                self._gone()

    def _read(self) -> None:
        try:
            size = os.readv(self._port, self._reader.pages())
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                self._gone()
            return
        if not size:
            self._gone()
            return
        self._receiving = True
        frames = self._reader.feed(size)
        if self._reader.nonce is not None:
            self._out = [wire.HELLO_BACK + self._reader.nonce]
            self._reader.nonce = None
            self._resumed = False
        for kind, number, body in frames:
            try:
                self._take(kind, number, body)
            except DamagedError:
                self._reader.hunt()
                break
            except (ValueError, KeyError, TypeError, IndexError, struct_error) as error:
                self.say(number, {"op": "end", "errno": EINVAL, "error": str(error), "offset": 0})

    def _take(self, kind: int, number: int, body: "Any") -> None:
        stream = self._streams.get(number)
        if kind == wire.MESSAGE:
            self._take_message(number, stream, packing.unpack_map(body))
        elif stream is not None and kind == wire.DATA:
            stream.on_data(body)
        elif stream is not None and kind == wire.SUMMED:
            stream.on_summed(body)
        elif stream is not None and kind == wire.ACK:
            stream.on_ack(*ACK_BODY.unpack(body))

    def _take_message(self, number: int, stream: "Stream | None", request: "dict[str, Any]") -> None:
        op = request["op"]
        if op == "resume":
            self._resume(request)
        elif op == "open":
            self._open(number, stream, request)
        elif op == "drop":
            self._drop(number)
        elif stream is not None:
            if request["n"] > stream.controls:
                stream.controls = request["n"]
                stream.control(request)
            self.say(number, {"op": "done", "n": stream.controls})

    def _resume(self, request: "dict[str, Any]") -> None:
        """A new connection: what the host does not know any more ends, the rest goes on where the host is."""
        known = {number: (received, limit) for number, received, limit in request["streams"]}
        for number in [number for number in self._streams if number not in known]:
            self._drop(number)
        self._resumed = True
        rows = [[number, one.received, one.controls] for number, one in self._streams.items()]
        self.say(0, {"op": "resumed", "version": VERSION, "instance": self._instance, "streams": rows})
        for number, stream in self._streams.items():
            stream.resume(*known[number])
            stream.say_end()
        self._reported = None
        self._report(again=False)

    def _open(self, number: int, stream: "Stream | None", request: "dict[str, Any]") -> None:
        if stream is None:
            if len(self._streams) >= MAX_STREAMS:
                raise ValueError("too many streams")
            kind = KINDS[request["kind"]]
            opened = (SummedReadFile if kind is ReadFile and request.get("summed") else kind)(self, number)
            self._streams[number] = opened
            opened.resume(0, request["window"])
            try:
                opened.start(request)
                opened.has_room()
            except OSError as error:
                opened.close()
                opened.fail(error)
            except KeyError as error:
                opened.close()
                opened.end(errno=EINVAL, error="no user {}".format(error))
        else:
            stream.say_opened()
            stream.say_end()

    def _drop(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.close()

    def _fill(self) -> None:
        """Acknowledgements, then output, each stream in its turn."""
        self._more = False
        if not self._resumed:
            return
        for stream in self._streams.values():
            self._send(stream.ack(self._receiving))
        numbers = sorted(self._streams)
        idle, waiting = 0, sum(map(len, self._out))
        while numbers and idle < len(numbers) and waiting < FULL:
            self._turn = (self._turn + 1) % len(numbers)
            data = self._streams[numbers[self._turn]].next_frame()
            self._send(data)
            waiting += len(data)
            idle = 0 if data else idle + 1
        self._more = waiting >= FULL

    def _report(self, again: bool = True) -> None:
        if self._resumed:
            found = report()
            if found != self._reported:
                self._reported = found
                self.say(0, found)
        if again:
            self.later(REPORT_EVERY, self._report)

    def _discard_partial(self, path: bytes) -> None:
        if self._partials.get(path, 0.0) <= monotonic():
            self._partials.pop(path, None)
            discard(path)


def main(argv: "list[str]") -> None:
    """`argv` names the port, or `fd:N` an open socket, whose end ends the program. Raises: OSError."""
    name = argv[0]
    if name.startswith("fd:"):
        os.set_inheritable(int(name[3:]), False)
        GuestProgram(int(name[3:]), lasting=False).run()
    else:
        GuestProgram(os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), lasting=True).run()
