"""Clients, streams and the server, cancelled at each checkpoint: no connection is left, here or at a peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
import trio

from tests.agent.nodes import spec
from tests.cancellation import cancel_at_each_checkpoint
from twinshare.agent.open_node import open_node
from twinshare.api.rest_client import RESTClient
from twinshare.api.server import open_api
from twinshare.protocols.access import LOCAL_ADMIN
from twinshare.protocols.guest_stream import DialPort

from .served import TABLE, config, served, served_in_a_fleet


async def test_a_server_and_its_connection(tmp_path: Path) -> None:
    async with open_node(config(tmp_path)) as node:

        async def work() -> None:
            async with open_api(node) as url:
                address = httpx.URL(url)
                async with await trio.open_tcp_stream(address.host, address.port or 0) as client:
                    await client.send_all(b"GET /api/vm HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert b" 200 " in await client.receive_some()

        assert await cancel_at_each_checkpoint(work) > 20


async def read_events(client: RESTClient) -> None:
    async with client.events(after=0) as events:
        await anext(events)


async def type_on_console(client: RESTClient) -> None:
    async with client.console("one") as console:
        await console.send(b"x")
        await console.receive()


async def type_on_console_of_peer(client: RESTClient) -> None:
    async with client.console("one", "far") as console:
        await console.send(b"x")
        await console.receive()


@pytest.mark.parametrize("use", [read_events, type_on_console])
async def test_a_client(tmp_path: Path, use: Callable[[RESTClient], Awaitable[None]]) -> None:
    async with served(tmp_path) as api, RESTClient(api.url) as client:
        await api.node.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        assert await cancel_at_each_checkpoint(lambda: use(client)) > 10


async def test_streams_to_a_peers_guest(tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far), RESTClient(api.url) as client:
        await far.call(LOCAL_ADMIN, TABLE["create_vm"], {"spec": spec(start=True)})
        assert await cancel_at_each_checkpoint(lambda: type_on_console_of_peer(client)) > 10

        async def connect() -> None:
            async with api.node.streams.guest(LOCAL_ADMIN, "one", DialPort(port=80), "far") as stream:
                assert stream.opened

        assert await cancel_at_each_checkpoint(connect) > 10
