"""The agent's end of the keeper's socket: ask for a TCP socket that lives inside, or for a process.

What comes back was written inside: it is bounded and decoded by type, and no process id in it is ever acted upon.
"""

from __future__ import annotations

import array
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import trio

from ....protocols.errors import HypervisorDown
from .processes import started

_MESSAGE = 192 * 1024
_DESCRIPTORS = 4
_CLOSE_ON_EXEC = 0x4000_0000  # MSG_CMSG_CLOEXEC: without it Python leaves received descriptors inheritable
_PATIENCE = 10.0


class KeeperLeft(HypervisorDown):
    """It ended before it answered."""


class Reply(msgspec.Struct, frozen=True):
    """Any answer of the keeper; what it is not about stays as here. `error` and `errno` say why it refused."""

    pid: int = 0
    version: int = 0
    ended: bool = False
    exit: int | None = None
    error: str | None = None
    errno: int = 0


async def connect(address: Path) -> socket.socket:
    """Raises: OSError when nobody listens there."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.setblocking(False)
    try:
        while True:
            try:
                link.connect(str(address))
                return link
            except BlockingIOError:  # its queue is full
                await trio.sleep(0.005)
    except BaseException:
        link.close()
        raise


async def ask(link: socket.socket, request: Mapping[str, object], given: Sequence[int] = ()) -> tuple[Reply, list[int]]:
    """One question, one answer, with descriptors.

    Raises: OSError as it happened inside; HypervisorDown when there is no answer.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))] if given else []
    with trio.move_on_after(_PATIENCE):
        try:
            link.sendmsg([msgspec.json.encode(request)], rights)
            await trio.lowlevel.wait_readable(link)
            data, descriptors = receive(link)
        except (ConnectionError, BlockingIOError) as error:
            raise KeeperLeft(f"The keeper of the enclosure left: {error}.") from error
        if not data:
            raise KeeperLeft("The keeper of the enclosure left.")
        reply = decode(data)
        if reply.error is not None:
            raise OSError(reply.errno, reply.error)
        return reply, descriptors
    raise HypervisorDown(f"The keeper of the enclosure did not answer within {_PATIENCE:.0f} s.")


def receive(link: socket.socket) -> tuple[bytes, list[int]]:
    """`socket.recv_fds` would do, if it passed its flags on."""
    descriptors = array.array("i")
    size = socket.CMSG_LEN(_DESCRIPTORS * descriptors.itemsize)
    data, ancillary, _, _ = link.recvmsg(_MESSAGE, size, _CLOSE_ON_EXEC)
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(rights[: len(rights) - len(rights) % descriptors.itemsize])
    return data, list(descriptors)


def decode(data: bytes) -> Reply:
    try:
        return msgspec.json.decode(data, type=Reply)
    except msgspec.DecodeError as error:
        raise HypervisorDown(f"The keeper of the enclosure speaks another language: {error}.") from error


class Process:
    """A process inside. It lives on when this handle is closed, unless it was launched as bound to it."""

    def __init__(self, link: socket.socket, pid: int) -> None:
        self.pid = pid
        self._link = link
        self._lock = trio.Lock()
        self._started = started(pid)
        self._lost = False
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code (negative: the signal), None while it runs. 255 when it ended unseen, after its keeper."""
        while self._code is None and not self._lost:
            try:
                data = self._link.recv(_MESSAGE)
            except BlockingIOError:
                return None
            except OSError:
                data = b""
            self._lost = not data
            if data:
                self._code = decode(data).exit
        if self._code is None and (self._started is None or started(self.pid) != self._started):
            self._code = 255
        return self._code

    async def wait(self) -> int:
        """Until it ends; its exit code."""
        async with self._lock:
            while (code := self.poll()) is None:
                if self._lost:
                    await trio.sleep(0.05)
                else:
                    await trio.lowlevel.wait_readable(self._link)
            return code

    def send_signal(self, number: int) -> None:
        """To its process group, by way of the keeper; nothing happens if either has ended."""
        if self.poll() is None and not self._lost:
            self._link.send(msgspec.json.encode({"do": "signal", "number": number}))

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; closing twice is no error."""
        if self._link.fileno() == -1:
            return
        self._lost = True
        trio.lowlevel.notify_closing(self._link)
        self._link.close()
