"""Connecting and opening streams, cancelled at each checkpoint: no socket is left."""

from __future__ import annotations

import trio

from tests.cancellation import cancel_at_each_checkpoint
from twinshare.agent.p2p.contract_hosts import ECHO

from .hosts import open_hosts


async def test_hosts_that_are_being_opened() -> None:
    async def work() -> None:
        async with open_hosts(2) as (near, far):
            await near.connect(far.peer_id, far.addresses)

    assert await cancel_at_each_checkpoint(work) > 20


async def test_a_connection_and_its_stream() -> None:
    async with open_hosts(2) as (near, far):

        async def work() -> None:
            try:
                await near.connect(far.peer_id, far.addresses)
                stream = await near.open_stream(far.peer_id, ECHO)
                try:
                    await stream.send_all(b"hello")
                    await stream.receive_some()
                finally:
                    stream.reset()
            finally:
                with trio.CancelScope(shield=True):
                    await near.disconnect(far.peer_id)
                    await far.disconnect(near.peer_id)

        assert await cancel_at_each_checkpoint(work) > 20
