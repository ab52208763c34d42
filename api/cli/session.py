"""Carries bytes between a session in a guest and this terminal, or pipes; a connection that is cut is made again."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from urllib.parse import urlencode

from ...protocols.console import SILENCE
from ...protocols.errors import TwinshareError
from ...protocols.guest_socket import ClientEnd, client_text, input_offset
from ...protocols.guest_stream import Channel, Finished, InputEnd, Opened, Output, Resize, SendSignal
from ..blocking_client import ApiClient
from ..exchange import NodeUnreachable
from ..websocket import ClientSocket
from .console import raw_terminal, woken_by_signals
from .output import say

RECONNECT_WITHIN = 60.0
"""Seconds for which a node that is away is asked again."""
KEPT_INPUT = 4 << 20
"""Bytes of input that are kept until the guest has them, in case that the connection is cut before."""
AHEAD = 1 << 17
"""Bytes of input that wait to be sent, at most."""
_PAUSE = 0.5
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SIGNALS = {signal.SIGINT: "INT", signal.SIGTERM: "TERM", signal.SIGHUP: "HUP", signal.SIGQUIT: "QUIT"}


class SessionRun:
    """One session in the foreground. `path` is where it is attached to; with `reads_input` stdin is sent to it.

    A stream that is not `resumable`, such as a connection, ends when it is cut, and gets no signals.
    """

    def __init__(
        self, client: ApiClient, path: str, *, terminal: bool, reads_input: bool, resumable: bool = True
    ) -> None:
        self._client, self._path, self._resumable = client, path, resumable
        self._terminal, self._input_open = terminal, reads_input
        self._offset: int | None = None
        self._writer = ""
        # Input from `_input_start` on, which the node may not have taken; `_ended` after its end.
        self._input, self._input_start, self._sent = bytearray(), 0, 0
        self._ended = False
        self._pending: list[str] = []
        self._wake = -1

    def run(self) -> Finished:
        """Return how the command ended. Raises: what the node raises; NodeUnreachable when it stays away."""
        if not self._input_open:
            self._ended = True
        on_terminal = self._terminal and sys.stdin.isatty()
        with raw_terminal(on_terminal), woken_by_signals() as self._wake, self._handlers():
            lost_at: float | None = None
            while True:
                connected_at = time.monotonic()
                try:
                    return self._attach()
                except NodeUnreachable as error:
                    if error.reason == "protocol" or not self._resumable:
                        raise
                    lost_at = connected_at if lost_at is None or self._was_attached else lost_at
                    if time.monotonic() - lost_at > RECONNECT_WITHIN:
                        raise
                    time.sleep(_PAUSE)

    @contextmanager
    def _handlers(self) -> Iterator[None]:
        """Pass signals and the window's size on to the guest."""
        numbers = {*(_SIGNALS if self._resumable else ()), *([signal.SIGWINCH] if self._terminal else [])}
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGWINCH:
            self._pending.append(_window())
        else:
            self._pending.append(client_text(SendSignal(signal=_SIGNALS[signal.Signals(number)])))

    def _attach(self) -> Finished:
        self._was_attached = False
        websocket, end = ClientSocket(), ClientEnd()
        target = self._path
        if self._offset is not None or self._writer:
            known = {"offset": self._offset, "writer": self._writer or None}
            target += "?" + urlencode({name: value for name, value in known.items() if value is not None})
        connection, opening = self._client.upgrade(target, websocket)
        self._was_attached = True
        self._sent = 0
        unsent = bytearray()
        heard_at = time.monotonic()
        finished = self._take(websocket, end, opening, unsent) if opening else None
        while finished is None:
            if websocket.error is not None:
                raise websocket.error
            if websocket.end is not None:
                raise NodeUnreachable("the session's stream has ended", "lost")
            if end.opened is not None:
                self._queue(websocket, unsent)
            readable, writable = self._wait(connection, unsent, heard_at)
            if writable:
                with suppress(*_WOULD_BLOCK):
                    del unsent[: _send(connection, unsent)]
            if connection in readable:
                heard_at = time.monotonic()
                data = _receive(connection)
                finished = None if data is None else self._take(websocket, end, data, unsent)
            elif time.monotonic() - heard_at > SILENCE:
                websocket.feed_messages(b"")
            if self._wake in readable:
                os.read(self._wake, 4096)
            if sys.stdin.fileno() in readable:
                self._read_input()
        with suppress(OSError, TwinshareError):
            connection.sendall(websocket.close())
        return finished

    def _wait(
        self, connection: socket.socket, unsent: bytearray, heard_at: float
    ) -> tuple[list[socket.socket | int], bool]:
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return [connection], bool(unsent)
        inputs: list[socket.socket | int] = [connection, self._wake]
        if self._input_open and len(unsent) < AHEAD and len(self._input) < KEPT_INPUT:
            inputs.append(sys.stdin.fileno())
        timeout = max(0.0, heard_at + SILENCE + 1 - time.monotonic())
        readable, writable, _ = select.select(inputs, [connection] if unsent else [], [], timeout)
        return readable, bool(writable)

    def _take(self, websocket: ClientSocket, end: ClientEnd, data: bytes, unsent: bytearray) -> Finished | None:
        """Show what has come. Returns how the command ended, when it has."""
        for raw in websocket.feed_messages(data):
            attached = end.opened is not None
            message = end.read(raw)
            if not attached and end.opened is not None:
                self._resume_input(websocket, end.opened, unsent)
            if isinstance(message, Finished):
                return message
            if isinstance(message, Output):
                _show(message)
                self._offset = message.offset + len(message.data)
        self._forget_input(end.input_taken)
        unsent += websocket.replies()
        return None

    def _resume_input(self, websocket: ClientSocket, opened: Opened, unsent: bytearray) -> None:
        """Send the input again that the guest does not have. Raises: NodeUnreachable."""
        accepted = opened.input_offset if opened.input_end is None else opened.input_end
        if accepted < self._input_start:
            raise NodeUnreachable("the session has lost input that was sent", "protocol")
        if self._offset is None and not self._input:
            self._input_start = accepted
        self._writer = opened.writer
        self._forget_input(opened.input_offset)
        self._sent = 0
        unsent += websocket.text(input_offset(self._input_start))
        if self._terminal:
            self._pending.append(_window())
        if self._ended:
            self._pending.append(client_text(InputEnd()))

    def _forget_input(self, taken: int) -> None:
        """The guest has the input before `taken`, which may be another client's as well."""
        count = min(max(0, taken - self._input_start), len(self._input))
        del self._input[:count]
        self._input_start, self._sent = self._input_start + count, max(0, self._sent - count)

    def _queue(self, websocket: ClientSocket, unsent: bytearray) -> None:
        if self._sent < len(self._input) and len(unsent) < AHEAD:
            part = bytes(self._input[self._sent : self._sent + AHEAD])
            self._sent += len(part)
            unsent += websocket.messages(part)
        if self._sent == len(self._input):
            while self._pending:
                unsent += websocket.text(self._pending.pop(0))

    def _read_input(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 1 << 15)
        except OSError:  # the terminal is gone
            data = b""
        if data:
            self._input += data
            return
        self._input_open, self._ended = False, True
        self._pending.append(client_text(InputEnd()))


def _window() -> str:
    columns, rows = shutil.get_terminal_size()
    return client_text(Resize(columns=columns, rows=rows))


def _show(output: Output) -> None:
    descriptor = (sys.stderr if output.channel is Channel.STDERR else sys.stdout).fileno()
    data = output.data
    while data:
        data = data[os.write(descriptor, data) :]


def _send(connection: socket.socket, data: bytearray) -> int:
    try:
        return connection.send(data)
    except _WOULD_BLOCK:
        raise
    except OSError:  # the next read says that it is lost
        return 0


def _receive(connection: socket.socket) -> bytes | None:
    """Return what has come, b"" at the end, None when there is nothing yet."""
    try:
        return connection.recv(1 << 16)
    except _WOULD_BLOCK:
        return None
    except OSError:
        return b""


def exit_code(finished: Finished) -> int:
    """Return the code with which a shell would end after such a command."""
    if finished.exit_code is not None:
        return finished.exit_code
    if finished.signal is not None:
        number = getattr(signal, f"SIG{finished.signal.removeprefix('SIG')}", None)
        say(f"the command was ended by the signal {finished.signal}")
        return 128 + int(number) if number is not None else 255
    return 255
