"""What the libvirt adapter needs of a sandbox: `Sandbox` provides it, and so may a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio


class ProcessHandle(Protocol):
    """A started process. `poll` returns its exit code, None while it runs; `close` does not end it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def close(self) -> None: ...


class SandboxPort(Protocol):
    """Where the daemon and the guests run.

    `path` is short and names the same folder inside and outside. `user` is None when everything runs as the agent's own
    user. `kind` is `namespaces` where guests have a loopback of their own.
    """

    path: Path
    user: str | None
    kind: str

    async def spawn(self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path) -> ProcessHandle: ...

    async def dial(self, port: int, host: str) -> trio.SocketStream: ...
