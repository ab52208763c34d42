"""Registries for tests: Debian's docker-registry as a process, and a server that answers as a test tells it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.images.registry.certificates import write_pair
from tests.ports import free_port
from twinshare.protocols.access import Role

REGISTRY = "docker-registry"
USER, PASSWORD = "alice", "wonderland"
# docker-registry reads bcrypt alone: this is the password above.
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuA0vov2GDneHB3.8.cv9UF9g.RdvScIW"

needs_registry = pytest.mark.skipif(shutil.which(REGISTRY) is None, reason=f"{REGISTRY} is not installed")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


@dataclass(frozen=True)
class Settings:
    """A registry in a configuration."""

    host: str
    insecure: bool = True
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    roles: Sequence[Role] = ()
    push_roles: Sequence[Role] = ()


@asynccontextmanager
async def docker_registry(
    folder: Path, *, tls: bool = False, htpasswd: bool = False, auth: str = ""
) -> AsyncIterator[Settings]:
    """Run docker-registry on a folder of its own; yields what to configure to reach it."""
    port = free_port()
    settings = _configure(folder, port, tls=tls, auth=_HTPASSWD.format(folder) if htpasswd else auth)
    with (folder / "registry.log").open("wb") as log:
        start = partial(trio.run_process, stdout=log, stderr=log, check=False)
        async with trio.open_nursery() as nursery:
            process = await nursery.start(start, [REGISTRY, "serve", str(folder / "config.yml")])
            await _listening(port, process)
            yield settings
            nursery.cancel_scope.cancel()


_HTPASSWD = "htpasswd: {{realm: test, path: {}/htpasswd}}"


def _configure(folder: Path, port: int, *, tls: bool, auth: str) -> Settings:
    folder.mkdir(exist_ok=True)
    certificate, key = write_pair(folder) if tls else (None, None)
    served = f", tls: {{certificate: {certificate}, key: {key}}}" if tls else ""
    config = [
        "version: 0.1",
        "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {folder}/store}}, delete: {{enabled: true}}}}",
        f"http: {{addr: '127.0.0.1:{port}', secret: test{served}}}",
        f"auth: {{{auth}}}" if auth else "",
    ]
    (folder / "config.yml").write_text("\n".join(config) + "\n")
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    (folder / "password").write_text(PASSWORD + "\n")
    return Settings(
        f"127.0.0.1:{port}",
        insecure=not tls,
        ca_file=str(certificate or ""),
        username=USER if auth else "",
        password_file=str(folder / "password") if auth else "",
    )


async def _listening(port: int, process: trio.Process) -> None:
    with trio.fail_after(60):
        while True:
            with suppress(OSError):
                async with await trio.open_tcp_stream("127.0.0.1", port):
                    return
            if process.poll() is not None:
                raise AssertionError(f"{REGISTRY} ended with {process.returncode}")
            await trio.sleep(0.02)


class Exchange:
    """One request to the scripted server, the part of its body that came with the head, and the wire to answer on."""

    def __init__(self, stream: trio.SocketStream, head: bytes, body: bytes = b"") -> None:
        self.body = body
        lines = head.decode().split("\r\n")
        self.method, self.target, _ = lines[0].split(" ")
        self.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
        self.stream = stream

    async def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; `content_length` may lie."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("content-length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        data = f"HTTP/1.1 {status} x\r\n{head}connection: close\r\n\r\n".encode()
        await self.stream.send_all(data + (b"" if self.method == "HEAD" else body))


Handler = Callable[[Exchange], Awaitable[None]]


@asynccontextmanager
async def scripted(handler: Handler, port: int = 0) -> AsyncIterator[Settings]:
    """Serve `handler`, one request a connection, over plain http on loopback."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = await stream.receive_some(65536)
                    if not data:
                        return
                    head += data
                head, _, body = head.partition(b"\r\n\r\n")
                await handler(Exchange(stream, head, body))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, port, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield Settings(f"127.0.0.1:{port}")
        nursery.cancel_scope.cancel()


async def no_pause(_seconds: float) -> None:
    """Stands for the pauses between attempts."""
    await trio.lowlevel.checkpoint()
