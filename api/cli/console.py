"""What `twinshare vm console` does: bytes between a websocket and this terminal, or pipes."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ...protocols.console import SILENCE
from ...protocols.vm import Vm
from ..blocking_client import ApiClient
from ..exchange import guest_path
from ..websocket import ClientSocket
from .output import say

LEAVE = b"\x1d"
"""Ctrl-]."""
QUIET = 1.0
"""Seconds of silence after which the console is left when the input was no terminal and has ended."""
AHEAD = 1 << 17
"""Bytes of input that may wait for a guest which does not read."""
_CLOSE_TIMEOUT = 2.0
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def run_console(client: ApiClient, vm: Vm, peer: str | None, seconds: float | None) -> None:
    """Connect stdin and stdout with a VM's console until either side ends it.

    Raises: what the node raises; NodeUnreachable.
    """
    websocket = ClientSocket()
    # By id, so that it is the console of the VM whose name is shown.
    connection, opening = client.upgrade(guest_path(vm.id, "/console", peer), websocket)
    on_terminal = sys.stdin.isatty()
    # A raw terminal does not begin its lines by itself.
    how = "; Ctrl-] leaves, Enter may show a prompt\r" if on_terminal else ""
    with raw_terminal(on_terminal), woken_by_signals() as signals:
        say(f"console of VM '{vm.name}' on node '{vm.node}'{how}")
        ended = _ConsoleSession(connection, websocket, seconds, signals, on_terminal=on_terminal).run(opening)
    say(("\n" if on_terminal else "") + (ended or f"left the console of VM '{vm.name}'"))


@contextmanager
def raw_terminal(on_terminal: bool) -> Iterator[None]:
    """Send every key to the guest; restore the terminal when the block ends, by a signal too."""
    if not on_terminal:
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(sys.stdin, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def woken_by_signals() -> Iterator[int]:
    """A pipe that is readable after a signal: select does not see one that came just before it began to wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class _ConsoleSession:
    """Carries bytes between the terminal, or pipes, and the websocket; no side blocks another."""

    def __init__(
        self, connection: socket.socket, peer: ClientSocket, seconds: float | None, signals: int, *, on_terminal: bool
    ) -> None:
        self._connection, self._peer, self._signals = connection, peer, signals
        self._seconds, self._on_terminal = seconds, on_terminal
        self._input = sys.stdin.fileno()
        self._input_open = True
        self._unsent = bytearray()
        self._received_at = time.monotonic()
        self._leave_at = time.monotonic() + seconds if on_terminal and seconds is not None else None
        self._left = False

    def run(self, opening: bytes) -> str | None:
        """Run until either side ends it; return the node's reason, or None when the user has left.

        Raises: what the node raises; NodeUnreachable.
        """
        self._connection.setblocking(False)
        if opening:
            self._show(self._peer.feed(opening))
        while not self._left and self._peer.end is None:
            if self._peer.error is not None:
                raise self._peer.error
            self._step()
        self._close()
        return self._peer.end

    def _step(self) -> None:
        now = time.monotonic()
        until = min(self._received_at + SILENCE, self._leave_at or now + SILENCE)
        # A terminal is always read: Ctrl-] must leave whatever the guest does.
        reads = self._input_open and (self._on_terminal or len(self._unsent) < AHEAD)
        inputs = [self._connection, self._signals, *([self._input] if reads else [])]
        # select does not see what TLS has read already.
        held = isinstance(self._connection, ssl.SSLSocket) and self._connection.pending() > 0
        wait = 0.0 if held else max(0.0, until - now)
        readable, writable, _ = select.select(inputs, [self._connection] if self._unsent else [], [], wait)
        if self._signals in readable:
            os.read(self._signals, 1 << 12)
        if held or self._connection in readable:
            self._receive()
        if self._input in readable:
            self._read_input()
        if writable:
            with suppress(*_WOULD_BLOCK):
                del self._unsent[: self._connection.send(self._unsent)]
        self._check_deadlines()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._leave_at is not None and now >= self._leave_at and not self._unsent:
            self._left = True
        elif now >= self._received_at + SILENCE:
            self._show(self._peer.feed(b""))

    def _receive(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except _WOULD_BLOCK:
            return
        except OSError:
            data = b""
        self._received_at = time.monotonic()
        output = self._peer.feed(data)
        self._unsent += self._peer.replies()
        if output and not self._input_open and self._seconds is None:
            self._leave_at = self._received_at + QUIET
        self._show(output)

    def _show(self, output: bytes) -> None:
        sys.stdout.flush()
        while output:
            output = output[os.write(sys.stdout.fileno(), output) :]

    def _read_input(self) -> None:
        try:
            typed = os.read(self._input, 1 << 15)
        except OSError:  # the terminal is gone
            typed = b""
        if self._on_terminal:
            typed, key, _ = typed.partition(LEAVE)
            self._left = bool(key) or not (typed or key)
        if typed and len(self._unsent) < AHEAD:
            self._unsent += self._peer.messages(typed)
        if not typed and not self._on_terminal:
            self._input_open = False
            self._leave_at = time.monotonic() + (QUIET if self._seconds is None else self._seconds)

    def _close(self) -> None:
        with suppress(OSError):
            self._connection.settimeout(_CLOSE_TIMEOUT)
            self._connection.sendall(self._unsent + self._peer.close())
