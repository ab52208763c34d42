"""Sessions through a relay move to the direct path once there is one; no call is lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.host import PathKind
from twinshare.agent.p2p.memory.host import MemoryHost
from twinshare.agent.simulation import open_cluster


async def test_a_relayed_line_gives_way_to_a_direct_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PathKind.RELAYED
    monkeypatch.setattr(MemoryHost, "path", lambda _host, _peer: path)
    async with open_cluster(2) as cluster:
        a, b = cluster.nodes
        sessions = a.mesh.require_running().sessions
        session = await sessions.session_to(b.peer_id)
        path = PathKind.DIRECT
        cluster.network.cut(a.peer_id, b.peer_id)  # the call cannot be answered yet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.ask, b.name, "list_vms")
            await trio.sleep(0.2)
            assert session.busy
            sessions.replace_relayed(b.peer_id)
            await trio.sleep(0.5)
            assert not session.over.is_set()
            cluster.network.heal(a.peer_id, b.peer_id)
        with trio.fail_after(5):
            await session.over.wait()
        with trio.fail_after(5):
            while (other := await sessions.session_to(b.peer_id)) is session:
                await trio.sleep(0.1)
        assert await a.ask(b.name, "list_vms") == []
        sessions.replace_relayed(b.peer_id)
        await trio.sleep(2)
        assert await sessions.session_to(b.peer_id) is other, "a direct session stays"
