"""A proxy for tests: it leads every name to one port of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio


@dataclass
class Proxy:
    """A proxy that knows one name. `login` is what it was sent, `asked` whom it was asked for."""

    port: int = 0
    refuse: bool = False
    asked: list[str] = field(default_factory=list)
    login: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://alice:wonder%40land@127.0.0.1:{self.port}"


@asynccontextmanager
async def open_proxy(target: int) -> AsyncIterator[Proxy]:
    """A proxy for CONNECT and for plain http, which leads every name to the port `target` of this machine."""
    proxy = Proxy()

    async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some(65536)
            method, name, _ = head.split(b" ", 2)
            proxy.asked.append(name.decode())
            lines = head.decode(errors="replace").split("\r\n")
            proxy.login += [line for line in lines if line.lower().startswith("proxy-authorization")]
            if proxy.refuse:
                await stream.send_all(b"HTTP/1.1 403 not from here\r\ncontent-length: 0\r\n\r\n")
                return
            async with await trio.open_tcp_stream("127.0.0.1", target) as there, trio.open_nursery() as nursery:
                if method == b"CONNECT":
                    await stream.send_all(b"HTTP/1.1 200 done\r\n\r\n")
                else:
                    await there.send_all(head)
                nursery.start_soon(carry, stream, there)
                await carry(there, stream)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        proxy.port = listener.socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
