"""Connections: to a TCP port on the guest's own loopback, and to an SSH server that is started for each."""

import os
from _signal import SIGKILL  # pyright: ignore[reportMissingImports] - signal itself loads enum
from _socket import AF_INET, AF_INET6, AF_UNIX, SHUT_WR, SO_ERROR, SOCK_STREAM, SOL_SOCKET, socket, socketpair
from errno import EAGAIN, EINPROGRESS, EINTR, ENOENT
from select import POLLIN, POLLOUT

from .process import Child, User
from .stream import OUT, Program, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK = 32 * 1024
LOOPBACKS = ((AF_INET, "127.0.0.1"), (AF_INET6, "::1"))
FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin")


class Connection(Stream):
    """Bytes both ways over a socket, half-closes included."""

    def __init__(self, program: Program, number: int) -> None:
        Stream.__init__(self, program, number)
        self._socket: "socket | None" = None
        self._input = bytearray()
        self._input_ended = self._connecting = False
        self._reading = True

    def start(self, request: "dict[str, Any]") -> None:
        self._port = request["port"]
        self._addresses = list(LOOPBACKS)
        self._dial()

    def _dial(self) -> None:
        """Raises: OSError when there is no address left."""
        family, address = self._addresses.pop(0)
        one = socket(family, SOCK_STREAM)
        one.setblocking(False)
        self._socket, self._connecting = one, True
        try:
            one.connect((address, self._port))
        except OSError as error:
            if error.errno != EINPROGRESS:
                self._next(error)
                return
        self._watch()

    def _next(self, error: OSError) -> None:
        """Raises: OSError."""
        self._drop()
        if not self._addresses:
            raise error
        self._dial()

    def use(self, one: socket) -> None:
        """Carry the bytes of a connected socket."""
        one.setblocking(False)
        self._socket = one
        self.is_open()
        self._watch()

    def _ready(self, events: int) -> None:
        if self._socket is None:
            return
        if self._connecting:
            self._connected(self._socket)
            return
        if events & POLLOUT:
            self._write()
        if events & ~POLLOUT and self._socket is not None:
            self._read(self._socket)
        self._watch()

    def _connected(self, one: socket) -> None:
        number = one.getsockopt(SOL_SOCKET, SO_ERROR)
        if number:
            try:
                self._next(OSError(number, os.strerror(number)))
            except OSError as error:
                self.fail(error)
            return
        self._connecting = False
        self.is_open()
        self._watch()

    def _watch(self) -> None:
        if self._socket is None:
            return
        events = POLLIN if self._reading and self.room() and not self._connecting else 0
        events |= POLLOUT if self._connecting or self._input else 0
        if events:
            self.program.watch(self._socket.fileno(), events, self._ready)
        else:
            self.program.unwatch(self._socket.fileno())

    def _read(self, one: socket) -> None:
        if not self.room():
            return
        try:
            data = one.recv(min(CHUNK, self.room()))
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                self._drop()
                self.fail(error)
            return
        if data:
            self.put(OUT, data)
            return
        self._reading = False
        self.close_output()
        self._finish()

    def has_room(self) -> None:
        self._watch()

    def take(self, data: "bytes | memoryview") -> None:
        self._input += data
        self._write()
        self._watch()

    def take_end(self) -> None:
        self._input_ended = True
        self._write()

    def waiting(self) -> int:
        return len(self._input)

    def _write(self) -> None:
        if self._socket is None or self._connecting:
            return
        try:
            while self._input:
                del self._input[: self._socket.send(self._input[:CHUNK])]
            if self._input_ended:
                self._input_ended = False
                self._socket.shutdown(SHUT_WR)
                self._writing_ended = True
                self._finish()
        except OSError as error:
            if error.errno not in (EAGAIN, EINTR):
                self._drop()
                self.fail(error)

    _writing_ended = False

    def _finish(self) -> None:
        """Both directions are at their end."""
        if self._writing_ended and not self._reading:
            self._drop()
            self.end()

    def _drop(self) -> None:
        if self._socket is not None:
            self.program.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._drop()


class SshServer(Connection):
    """`sshd -i` or `dropbear -i`, with one end of a socket pair as its connection."""

    _pid = 0

    def start(self, request: "dict[str, Any]") -> None:
        argv = ssh_server()
        if not argv:
            raise FileNotFoundError(ENOENT, "no SSH server")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            near, far = socketpair(AF_UNIX, SOCK_STREAM)  # _socket closes what is not kept
            user = User("")
            self._pid = Child(argv, user, user.environment(), (far.fileno(), far.fileno(), null)).start()
            far.close()
        finally:
            os.close(null)
        self.program.child(self._pid, self._ended)
        self.use(near)

    def _ended(self, status: int) -> None:
        self._pid = 0

    def close(self) -> None:
        Connection.close(self)
        if self._pid:
            os.kill(self._pid, SIGKILL)


def ssh_server() -> "list[bytes]":
    """The command of an SSH server for one connection; none when there is none."""
    for name, options in (("sshd", ["-i"]), ("dropbear", ["-i", "-R"])):
        for folder in FOLDERS:
            path = folder + "/" + name
            if os.access(path, os.X_OK):
                if name == "sshd" and not os.path.isdir("/run/sshd"):
                    os.makedirs("/run/sshd", 0o755, exist_ok=True)
                return [word.encode() for word in (path, *options)]
    return []
