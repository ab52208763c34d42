"""Where nodes are, as real agents believe it: whatever a hostile member says of others, and whatever a clock was.

The numbers are those of the list of faults: A10, B2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from tests.hostile.member import open_member, send
from tests.nodes.fleet import agent_file, ask, join, online, start
from twinshare.agent.p2p.records import make_record
from twinshare.agent.p2p.signing import Signer
from twinshare.agent.testing import AgentProcess
from twinshare.protocols.access import Role
from twinshare.protocols.mesh import GossipUpdate, PeerRecord

AHEAD = 2 * 3600
ELSEWHERE = "/ip4/127.0.0.1/tcp/4999"
_WITH_CLOCK = """
import sys, time
real = time.time
time.time = lambda: real() + {ahead}
from twinshare.api.cli import main
sys.argv.insert(1, "agent")
main()
"""


@asynccontextmanager
async def running(folder: Path, clock: float = 0.0) -> AsyncIterator[AgentProcess]:
    """An agent whose clock is ahead by so many seconds, at a port that it did not have before."""
    inside = [sys.executable, "-c", _WITH_CLOCK.format(ahead=clock)] if clock else []
    agent = AgentProcess(
        folder,
        ["--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0", "--name", folder.name, "--hypervisor", "fake://"],
        {"TWINSHARE_P2P_ENABLED": "true", "TWINSHARE_P2P_DEAD_PEER_TIMEOUT": "2.0", "TWINSHARE_P2P_MDNS": "false"},
        program=inside or None,
    )
    await agent.start()
    try:
        yield agent
    finally:
        with trio.CancelScope(shield=True):
            await agent.stop()


async def believed(node: AgentProcess, peer: str) -> list[str]:
    """Where a node believes a peer to be."""
    found = await ask(node, "GET", f"/api/p2p/peers/{peer}")
    return [address.partition("/p2p/")[0] for address in found["addresses"]]


def listens(node: AgentProcess) -> list[str]:
    return [address.partition("/p2p/")[0] for address in agent_file(node)["addresses"]]


async def until_believed(node: AgentProcess, peer: AgentProcess) -> None:
    """Wait until a node sees a peer online, and believes it to be where it listens."""
    with trio.fail_after(30):
        while peer.data_dir.name not in await online(node):
            await trio.sleep(0.05)
        while listens(peer)[0] not in await believed(node, peer.data_dir.name):
            await trio.sleep(0.05)


async def test_a10_no_member_moves_another(tmp_path: Path) -> None:
    founder = await start(tmp_path / "founder", hypervisor="fake://")
    try:
        async with open_member(founder, Role.VIEWER) as viewer:
            async with running(tmp_path / "subject") as subject:
                await join(subject, founder)
                peer_id, right = agent_file(subject)["peer_id"], listens(subject)
                await until_believed(founder, subject)
                book = viewer.mesh.context.address_book
                with trio.fail_after(20):
                    while not (old := [each for each in book.peer_records() if each.peer == peer_id and each.token]):
                        await trio.sleep(0.05)
                for record in lies(peer_id, viewer.signer):
                    packed = msgspec.msgpack.encode({"news": GossipUpdate(records=[record])})
                    await send(viewer, founder, "tell", packed)
                assert ELSEWHERE not in (await believed(founder, "subject"))[:1]
                assert set(right) <= set(await believed(founder, "subject"))
            # It comes back elsewhere, and the viewer repeats what it once signed.
            async with running(tmp_path / "subject") as subject:
                await until_believed(founder, subject)
                await send(viewer, founder, "tell", msgspec.msgpack.encode({"news": GossipUpdate(records=old)}))
                assert listens(subject) != right
                assert (await believed(founder, "subject"))[0] == listens(subject)[0]
    finally:
        await founder.stop()


def lies(peer_id: str, signer: Signer) -> list[PeerRecord]:
    """Records of somebody else: unsigned, and signed by the liar, of all numbers that could matter."""
    now = int(time.time() * 1000)
    found = []
    for number in (2**63 - 1, now + 86_400_000, now + 1000):
        record = PeerRecord(peer=peer_id, addresses=[ELSEWHERE], number=number)
        token = make_record(signer, record).decode()
        found += [record, msgspec.structs.replace(record, token=token)]
    return found


async def test_b2_a_node_whose_clock_was_ahead_is_found_where_it_is_now(tmp_path: Path) -> None:
    """By the peer that it calls, and by a third one that only hears of it."""
    async with running(tmp_path / "founder") as founder, running(tmp_path / "third") as third:
        await join(third, founder)
        async with running(tmp_path / "subject") as subject:
            await join(subject, founder)
        async with running(tmp_path / "subject", AHEAD) as subject:
            await until_believed(founder, subject)
            before = listens(subject)
        async with running(tmp_path / "subject") as subject:
            assert listens(subject) != before
            with trio.fail_after(30):
                for node in (founder, third):
                    while listens(subject)[0] not in await believed(node, "subject"):
                        await trio.sleep(0.1)
            await ask(third, "POST", "/api/p2p/peers/subject/ping")
