"""What a member sends is bounded where it arrives: an agent of a real fleet gets what no honest node would send."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.hostile.member import open_member, resident, send
from tests.nodes.fleet import ask, start
from tests.stopwatch import Stopwatch
from twinshare.protocols.access import Role
from twinshare.protocols.errors import InvalidRequest, TooLarge, TwinshareError

MIB = 1 << 20


def letter(data: object) -> bytes:
    return msgspec.msgpack.encode({"letter": {"message_type": "X", "data": data}})


async def test_a3_what_is_too_large_or_holds_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    agent = await start(tmp_path / "node", hypervisor="fake://")
    try:
        async with open_member(agent, Role.VIEWER) as viewer:
            assert b"received" in await send(viewer, agent, "deliver", letter({"text": "x" * 65_000}))
            before = resident(agent)
            stopwatch = Stopwatch(agent.pid)
            with pytest.raises(TooLarge):
                await send(viewer, agent, "deliver", letter({"text": "x" * 1_000_000}))
            for _ in range(5):
                with pytest.raises(TwinshareError):
                    await send(viewer, agent, "deliver", letter({"maps": [{}] * 1_000_000}))
                for method in ("tell", "list_vms", "create_vm", "no_such_method"):
                    with pytest.raises(TwinshareError):
                        await send(viewer, agent, method, msgspec.msgpack.encode({"x": [{}] * 1_000_000}))
            with pytest.raises(InvalidRequest, match="more than 40000 values"):
                await send(viewer, agent, "tell", msgspec.msgpack.encode({"news": {"members": [[]] * 500_000}}))
            assert stopwatch.seconds < 5
            assert resident(agent) - before < 20 * MIB
            health = await ask(agent, "GET", "/api/health")
            assert health["status"] == "ok"
    finally:
        await agent.stop()
