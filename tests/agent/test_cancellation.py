"""Whatever is cancelled at whatever checkpoint leaves no file and no socket open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests import cancellation
from tests.cancellation import cancel_at_each_checkpoint
from twinshare.agent.hypervisor.memory.guest import stream_pair
from twinshare.agent.open_node import open_node
from twinshare.agent.relays import open_relays

from .nodes import config


async def test_what_has_no_owner_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "SETTLED_WITHIN", 0.01)
    opened: list[int] = []

    async def careless() -> None:
        opened.extend(os.pipe())
        await trio.lowlevel.checkpoint()
        while opened:
            os.close(opened.pop())

    try:
        with pytest.raises(AssertionError, match=r"'pipe': 2.* at checkpoint 1"):
            await cancel_at_each_checkpoint(careless)
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def test_a_node_that_is_being_opened(tmp_path: Path) -> None:
    async def work() -> None:
        async with open_node(config(tmp_path)):
            pass

    assert await cancel_at_each_checkpoint(work) > 50


async def test_a_relay_and_its_connection() -> None:
    async def work() -> None:
        async with open_relays() as relays:
            port = await relays.open(("one",), "127.0.0.1", 0, dial)
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                assert await client.receive_some() == b"hello"

    async def dial() -> trio.SocketStream:
        near, far = stream_pair()
        try:
            async with far:
                await far.send_all(b"hello")
        except BaseException:
            near.socket.close()
            raise
        return near

    assert await cancel_at_each_checkpoint(work) > 10
