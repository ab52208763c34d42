"""The agent's end of the supervisor's socket: requests, replies with descriptors, and handles of started processes.

Replies are written in the sandbox: they are bounded and decoded by type, and no process ID in them is ever signalled.
"""

from __future__ import annotations

import array
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import trio

from ....protocols.errors import HypervisorDown
from .processes import start_time

_MESSAGE = 192 * 1024
_DESCRIPTORS = 4
_CLOSE_ON_EXEC = 0x4000_0000  # MSG_CMSG_CLOEXEC: without it Python leaves received descriptors inheritable
REPLY_TIMEOUT = 10.0  # seconds


class SupervisorGone(HypervisorDown):
    """The supervisor ended before it replied."""


class Reply(msgspec.Struct, frozen=True):
    """Any reply of the supervisor; unused fields keep their defaults. `error` and `errno` say why it refused."""

    pid: int = 0
    version: int = 0
    ended: bool = False
    exit: int | None = None
    error: str | None = None
    errno: int = 0


async def connect(address: Path) -> socket.socket:
    """Connect to the supervisor's socket. Raises: OSError when nothing listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        while True:
            try:
                connection.connect(str(address))
                return connection
            except BlockingIOError:  # its queue is full
                await trio.sleep(0.005)
    except BaseException:
        connection.close()
        raise


async def request(
    connection: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = (), expected: int = 0
) -> tuple[Reply, list[int]]:
    """Send one request and return its reply with the `expected` number of descriptors.

    Raises: OSError as it happened in the sandbox; HypervisorDown when there is no reply, or not such a one.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with trio.move_on_after(REPLY_TIMEOUT):
        try:
            connection.sendmsg([msgspec.json.encode(message)], rights)
            await trio.lowlevel.wait_readable(connection)
            data, received = receive(connection)
        except (ConnectionError, BlockingIOError) as error:
            raise SupervisorGone(f"The sandbox's supervisor ended: {error}.") from error
        if not data:
            raise SupervisorGone("The sandbox's supervisor ended.")
        try:
            reply = decode(data)
            if reply.error is not None:
                raise OSError(reply.errno, reply.error)
            if len(received) != expected:
                raise HypervisorDown(f"The sandbox's supervisor sent {len(received)} descriptors, not {expected}.")
        except BaseException:
            for number in received:
                os.close(number)
            raise
        return reply, received
    raise HypervisorDown(f"The sandbox's supervisor did not reply within {REPLY_TIMEOUT:.0f} s.")


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """As `socket.recv_fds`, which does not pass its flags on."""
    descriptors = array.array("i")
    size = socket.CMSG_LEN(_DESCRIPTORS * descriptors.itemsize)
    data, ancillary, _, _ = connection.recvmsg(_MESSAGE, size, _CLOSE_ON_EXEC)
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
    return data, list(descriptors)


def decode(data: bytes) -> Reply:
    try:
        return msgspec.json.decode(data, type=Reply)
    except msgspec.DecodeError as error:
        raise HypervisorDown(f"The sandbox's supervisor sent an invalid reply: {error}.") from error


class Process:
    """A process in the sandbox. It runs on when this handle is closed, unless it was launched as bound to it."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self._connection = connection
        self._lock = trio.Lock()
        self._start_time = start_time(pid)
        self._lost = False
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal), None while it runs; 255 when it ended after its supervisor."""
        while self._code is None and not self._lost:
            try:
                data = self._connection.recv(_MESSAGE)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            self._lost = not data
            if data:
                self._code = decode(data).exit
        if self._code is None and (self._start_time is None or start_time(self.pid) != self._start_time):
            self._code = 255
        return self._code

    async def wait(self) -> int:
        """Wait for its end and return the exit code."""
        async with self._lock:
            while (code := self.poll()) is None:
                if self._lost:
                    await trio.sleep(0.05)
                else:
                    await trio.lowlevel.wait_readable(self._connection)
            return code

    def send_signal(self, number: int) -> None:
        """Signal its process group through the supervisor; no effect if either has ended."""
        if self.poll() is None and not self._lost:
            self._connection.send(msgspec.json.encode({"do": "signal", "number": number}))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close the handle; closing twice is no error."""
        if self._connection.fileno() == -1:
            return
        self._lost = True
        trio.lowlevel.notify_closing(self._connection)
        self._connection.close()
