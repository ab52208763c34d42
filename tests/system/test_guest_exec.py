"""The guest channel of real QEMU guests without any network: commands, files, and output that outlives the agent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.guest.disks import tiny_disk
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import GuestRefused
from twinshare.protocols.guest import SessionState
from twinshare.protocols.guest_stream import Finished, Output

pytestmark = pytest.mark.system

BOOTS_WITHIN = 120.0
LINES = 100
# Each line takes a while, so that the agent is killed in the middle of them.
SLOW = f"i=0; while [ $i -lt {LINES} ]; do i=$((i + 1)); echo line $i; sleep 0.1; done; exit 5"


@asynccontextmanager
async def isolated_guest(folder: Path) -> AsyncIterator[AgentProcess]:
    """A node whose VM `alone` has no network, with a guest that answers on its channel."""
    async with open_agent(folder / "node") as agent:
        async with RESTClient(agent.url) as client:
            await client.import_image("tiny", await tiny_disk())
            await client.create_vm(
                "alone", "tiny", memory=128, disk_size=1, cpu_cores=1, network="isolated", start=True
            )
            await until_reachable(client)
        yield agent
        async with RESTClient(agent.url) as client:
            await client.delete_vm("alone", force=True)


async def until_reachable(client: RESTClient) -> None:
    with trio.fail_after(BOOTS_WITHIN):
        while not (await client.guests().show_guest("alone")).ready:
            await trio.sleep(0.1)


async def test_commands_files_and_a_killed_agent(tmp_path: Path) -> None:
    async with isolated_guest(tmp_path) as agent:
        async with RESTClient(agent.url) as client:
            await check_command(client)
            await check_file(client)
            await check_full_disk(client)
            session = (await client.exec_vm("alone", ["sh", "-c", SLOW], detach=True)).session
            await until_output(client, session)
        await agent.kill()
        await trio.sleep(1)  # the guest writes on while nobody reads
        await agent.start()
        async with RESTClient(agent.url) as client:
            text, end = await read_all(client, session)
            assert text == "".join(f"line {number}\n" for number in range(1, LINES + 1))
            assert end.exit_code == 5
            await check_program_ends(client)


async def check_command(client: RESTClient) -> None:
    done = await client.exec_vm("alone", ["sh", "-c", "echo x; echo y >&2; exit 3"], timeout=30)
    assert (done.stdout, done.stderr, done.exit_code) == ("x\n", "y\n", 3)


async def check_file(client: RESTClient) -> None:
    content = os.urandom(2 << 20)
    await client.write_file("alone", "/tmp/file", content)
    there = await client.exec_vm("alone", ["sha256sum", "/tmp/file"], timeout=60)
    assert there.stdout.split()[0] == hashlib.sha256(content).hexdigest()
    assert await client.read_file("alone", "/tmp/file") == content


async def check_full_disk(client: RESTClient) -> None:
    made = await client.exec_vm("alone", ["sh", "-c", "mkdir /mnt && mount -t tmpfs -o size=1m small /mnt"])
    assert made.exit_code == 0
    with pytest.raises(GuestRefused, match="No space left on device"):
        await client.write_file("alone", "/mnt/file", os.urandom(2 << 20))
    assert await client.list_files("alone", "/mnt") == []


async def check_program_ends(client: RESTClient) -> None:
    """It is killed, and what would start it again is stopped: then nobody has the port open."""
    session = (await client.exec_vm("alone", ["sleep", "1000"], detach=True)).session
    loop = (await client.exec_vm("alone", ["sh", "-c", "cut -d ' ' -f 4 /proc/$PPID/stat"])).stdout.strip()
    kill = f"(sleep 1; kill -STOP {loop}; kill -9 $PPID) >/dev/null 2>&1 &"
    await client.exec_vm("alone", ["sh", "-c", kill], timeout=60)
    with trio.fail_after(60):
        while (found := await client.guests().get_session("alone", session)).state is SessionState.RUNNING:
            await trio.sleep(0.1)
    assert found.state is SessionState.LOST
    assert "has ended" in str(found.reason)
    # Meanwhile QEMU's guest agent runs what is short; what would start the program goes on by it.
    done = await client.exec_vm("alone", ["sh", "-c", f"echo x; echo y >&2; kill -CONT {loop}; exit 3"])
    assert (done.stdout, done.stderr, done.exit_code) == ("x\n", "y\n", 3)
    await until_reachable(client)
    assert (await client.exec_vm("alone", ["echo", "again"])).stdout == "again\n"


async def until_output(client: RESTClient, session: str) -> None:
    with trio.fail_after(30):
        while (await client.guests().get_session("alone", session)).offset < 50:
            await trio.sleep(0.05)


async def read_all(client: RESTClient, session: str) -> tuple[str, Finished]:
    """All output of a session that only writes to stdout, and its end."""
    out = b""
    with trio.fail_after(90):
        async with client.attach_session("alone", session, offset=0) as stream:
            async for message in stream:
                if isinstance(message, Finished):
                    return out.decode(), message
                assert isinstance(message, Output)
                assert message.offset == len(out)
                out += message.data
    raise AssertionError("the stream has no end")
