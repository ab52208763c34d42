"""The simulated guest: a page on port 80 as the tiny guest has it, a screen, a serial console."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVarTuple, Unpack

import trio

from .agent_process import AgentProcesses
from .guest_process import GuestProcess

GuestServer = Callable[[trio.SocketStream], Awaitable[None]]
_P = TypeVarTuple("_P")


class GuestRun:
    """One run of a guest, from its start to its end, and the tasks that end with it."""

    def __init__(self) -> None:
        # Each has one connection at a time.
        self.console, self.channel = trio.Lock(), trio.Lock()
        self.program: GuestProcess | None = None
        self.agent = AgentProcesses()
        self._ended = False
        self._scopes: set[trio.CancelScope] = set()

    async def run(self, work: Callable[[Unpack[_P]], Awaitable[None]], *arguments: *_P) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._ended:
                scope.cancel()
            try:
                await work(*arguments)
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        self._ended = True
        for scope in self._scopes:
            scope.cancel()


def http_server(name: str) -> GuestServer:
    """A web server of one page: the guest's name."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request and len(request) < 65536:
            received = await stream.receive_some(4096)
            if not received:
                return
            request += received
        body = f"{name}\n".encode()
        head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)

    return serve


def echo(log: Path) -> GuestServer:
    """A serial console that echoes, and writes its output into the log as QEMU does."""

    async def serve(stream: trio.SocketStream) -> None:
        async for typed in stream:
            output = typed.replace(b"\r", b"\r\n")
            with suppress(OSError), log.open("ab") as file:
                file.write(output)
            await stream.send_all(output)

    return serve


async def run_server(serve: GuestServer, stream: trio.SocketStream) -> None:
    """Serve one connection; a peer that closes is no error."""
    async with stream:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await serve(stream)


def stream_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Return two ends of one connection: real sockets, so that half-close and back-pressure are real."""
    near, far = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(near)), trio.SocketStream(
        trio.socket.from_stdlib_socket(far)
    )
