"""The sandbox's first process: it holds the namespaces, starts every other process and reaps them all.

It outlives the agent, so that running guests keep their network and the next agent finds them. It serves one unix
socket (SOCK_SEQPACKET, one JSON message a packet, file descriptors beside it) that only the agent can reach:

    {"do": "hello"}                              -> {"version", "pid"}; the connection keeps the supervisor running
    {"do": "socket", "family": 2}                -> {} and a TCP socket of the sandbox's network namespace
    {"do": "launch", "argv", "env", "limits", "bound"} with stdin, stdout, stderr
                                                 -> {"pid"}, later {"exit"}; a bound process is killed when its
                                                 connection closes
    {"do": "signal", "number"}                   on the connection of a launch: signals its process group
    {"do": "attend"} with a pidfd                -> {}; that process (the last one) is killed when the supervisor ends
    {"do": "end"}                                -> {"ended": bool}; true unless a process runs in the sandbox

Without a connection and without children it ends by itself, so an agent that was killed leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from ...environment import close_descriptors, reset_environment
from . import namespaces

VERSION = 1
_LISTENER = 3
_MESSAGE = 192 * 1024
_FIRST_CONNECTION_TIMEOUT = 10_000  # milliseconds
_DESCRIPTORS = 4
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_CLOSE_ON_EXEC = 0x4000_0000  # MSG_CMSG_CLOEXEC
_LIMITS = {
    "address_space": resource.RLIMIT_AS,
    "cpu_seconds": resource.RLIMIT_CPU,
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
}


def main() -> None:
    """Argument: a SandboxSpec as JSON. Descriptor 3 is the listening socket."""
    close_descriptors(above=_LISTENER)
    reset_environment()
    listener = socket.socket(fileno=_LISTENER)
    listener.set_inheritable(False)
    spec = json.loads(sys.argv[1])
    for key in ("groups", "hide", "scratch", "blocked"):
        spec[key] = tuple(spec[key])
    try:
        namespaces.become_subreaper()
        namespaces.enter(namespaces.SandboxSpec(**spec))
    except OSError as error:
        _report({"error": error.strerror, "errno": error.errno})
        sys.exit(1)
    os.chdir("/")
    supervisor = Supervisor(listener)
    _report({"pid": os.getpid(), "version": VERSION})
    supervisor.serve()


def _report(message: dict[str, Any]) -> None:
    """Write one message to the agent on standard output, which then becomes /dev/null."""
    os.write(1, json.dumps(message).encode())
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


class Supervisor:
    """One thread that waits for its socket and its children, until it has neither a connection nor a child."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._connections: dict[int, socket.socket] = {}
        self._launched: dict[int, int] = {}  # connection -> process
        self._bound: set[int] = set()
        self._attended: int | None = None
        self._ended = False
        self._wakeup, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while not self._ended:
            for number, _ in poll.poll(self._timeout()):
                if number == self._wakeup:
                    self._reap()
                elif number == self._listener.fileno():
                    self._accept(poll)
                elif number in self._connections and not self._answer(self._connections[number]):
                    poll.unregister(number)
                    self._forget(number)
            if not self._connections and not _has_children():
                break
        if self._attended is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._attended, signal.SIGKILL)

    def _timeout(self) -> int | None:
        """Milliseconds. Only the wait for the first connection is limited: the agent may have died meanwhile."""
        return None if self._connections or _has_children() else _FIRST_CONNECTION_TIMEOUT

    def _accept(self, poll: select.poll) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)

    def _forget(self, number: int) -> None:
        self._connections.pop(number).close()
        process = self._launched.pop(number, None)
        if process is not None and number in self._bound:
            _signal_group(process, signal.SIGKILL)
        self._bound.discard(number)

    def _answer(self, connection: socket.socket) -> bool:
        """Answer one request; return False when the peer has closed."""
        try:
            data, descriptors = _receive(connection)
        except OSError:
            return False
        if not data:
            return False
        given: list[int] = []
        try:
            reply = self._do(connection, json.loads(data), descriptors, given)
        except OSError as error:
            reply = {"error": error.strerror, "errno": error.errno}
        try:
            socket.send_fds(connection, [json.dumps(reply).encode()], given)
        except OSError:
            return False
        finally:
            for number in (*descriptors, *given):
                os.close(number)
        return True

    def _do(
        self, connection: socket.socket, request: dict[str, Any], received: list[int], given: list[int]
    ) -> dict[str, Any]:
        match request["do"]:
            case "hello":
                return {"version": VERSION, "pid": os.getpid()}
            case "socket":
                given.append(socket.socket(request["family"], socket.SOCK_STREAM).detach())
            case "launch":
                process = _launch(request, received)
                self._launched[connection.fileno()] = process
                if request["bound"]:
                    self._bound.add(connection.fileno())
                return {"pid": process}
            case "signal":
                process = self._launched.get(connection.fileno(), 0)
                if process:
                    _signal_group(process, request["number"])
            case "attend":
                if self._attended is not None:
                    os.close(self._attended)
                self._attended = received.pop(0)
            case "end":
                self._ended = not _has_children()
                return {"ended": self._ended}
        return {}

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        connections = {process: number for number, process in self._launched.items()}
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if ended == 0:
                    break
                number = connections.get(ended)
                if number is None:
                    continue
                del self._launched[number]
                message = json.dumps({"exit": os.waitstatus_to_exitcode(status)}).encode()
                with contextlib.suppress(OSError):
                    self._connections[number].send(message)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """As `socket.recv_fds`, which does not pass its flags on."""
    size = socket.CMSG_LEN(_DESCRIPTORS * struct.calcsize("i"))
    data, ancillary, _, _ = connection.recvmsg(_MESSAGE, size, _CLOSE_ON_EXEC)
    found = b"".join(rights for level, kind, rights in ancillary if (level, kind) == _RIGHTS)
    return data, list(struct.unpack(f"{len(found) // 4}i", found))


def _launch(request: dict[str, Any], streams: list[int]) -> int:
    """Start a process in a session of its own. Raises: OSError when it cannot be executed."""
    failed_read, failed_write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            process = os.fork()
            if process == 0:
                _run_child(request, streams, failed_write)
        finally:
            os.close(failed_write)
        failure = os.read(failed_read, 16)
    finally:
        os.close(failed_read)
    if failure:
        raise OSError(int(failure), f"starting {request['argv'][0]}: {os.strerror(int(failure))}")
    return process


def _run_child(request: dict[str, Any], streams: list[int], failed: int) -> NoReturn:
    """Become the process; write the number of the error to `failed` when that cannot be."""
    try:
        _execute(request, streams, failed)
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(127)


def _execute(request: dict[str, Any], streams: list[int], failed: int) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    for ignored in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_DFL)
    # Descriptors come numbered above 2: nothing below is free. All but these are closed by their close-on-exec flag.
    for number, stream in enumerate(streams[:3]):
        os.dup2(stream, number)
    os.set_inheritable(failed, False)
    if request["bound"]:
        namespaces.set_no_new_privs()
    for name, value in request["limits"].items():
        resource.setrlimit(_LIMITS[name], (value, value))
    os.execve(request["argv"][0], request["argv"], request["env"])  # noqa: S606 - no shell is wanted


def _signal_group(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, number)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
