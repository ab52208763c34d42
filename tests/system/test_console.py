"""The serial console of a real guest: a person logs in through the command, in a terminal."""

from __future__ import annotations

import os
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.api.test_cli_console import piped, pipes, terminal
from tests.nodes.fleet import fleet, until_online
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.reach.consoles import BUFFER
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

pytestmark = pytest.mark.system


async def test_a_person_logs_in(node: AgentProcess) -> None:
    async with RESTClient(node.url) as client:
        await client.create_vm("login", "tiny", cpu_cores=1, memory=128, disk_size=1, start=True)
        try:
            async with terminal(node.url, "login") as shown, client.console("login") as other:
                await shown.see(b"console of VM 'login' on node 'shared'; Ctrl-] leaves")
                with trio.fail_after(90):
                    await shown.see(b"login login:", within=90)
                    await shown.type(b"root\r")
                    await shown.see(b"login# ")
                    await shown.type(b"echo $((6*7)) is the answer\r")
                    await shown.see(b"42 is the answer")
                    await shown.type(b"sleep 100\r")
                    await trio.sleep(0.5)
                    await shown.type(b"\x03")
                    await shown.see(b"^C")
                    heard = b""
                    while b"42 is the answer" not in heard:
                        heard += await other.receive()
                await shown.type(b"\x1d")
                assert await shown.end() == 0
            said, _ = await piped(node.url, "login", typed=b"echo $((7*8))\r")
            assert re.search(rb"^56\r$", said, re.MULTILINE)
            log = (await client.vms().vm_log("login")).text
            assert "42 is the answer" in log
            assert re.search("^56\r?$", log, re.MULTILINE)
            async with terminal(node.url, "login") as shown:
                await shown.type(b"\rpoweroff -f\r")
                assert await shown.end(within=60) == 0
                await shown.see(b"VM 'login' has stopped")
        finally:
            await client.delete_vm("login", force=True)


async def test_far_consoles_over_libp2p_and_deaths_of_all_sorts(tmp_path: Path) -> None:
    async with fleet(tmp_path, 2) as (far, near):
        async with RESTClient(far.url) as client:
            await client.import_image("disk", pieces(raw_disk(1)))
            await client.create_vm("web", "disk", cpu_cores=1, memory=64, disk_size=1, start=True)
        async with pipes(near.url, "web", "--on", "node-1") as pipe:
            for _ in range(12):  # each no more than a listener may be behind: a busy machine loses nobody
                typed = os.urandom(BUFFER // 2).replace(b"\r", b"")
                assert await pipe.echo(typed) == typed
            assert await pipe.leave() == b""
        for _ in range(2):  # more in all than may be at once: each killed one leaves room
            async with AsyncExitStack() as stack:
                seats = [terminal(near.url, "web", "--on", "node-1", killed=True) for _ in range(6)]
                for shown in [await stack.enter_async_context(seat) for seat in seats]:
                    await shown.see(b"on node 'node-1'")
                    shown.process.kill()
        async with terminal(near.url, "web", "--on", "node-1") as shown:
            await shown.see(b"console of VM 'web' on node 'node-1'")
            await near.kill()
            assert await shown.end() == 4
            await shown.see(b"the connection with the node was lost")
        await near.start()
        await until_online(near, "node-1")
        async with terminal(near.url, "web", "--on", "node-1") as shown:
            await shown.see(b"on node 'node-1'")
            await far.kill()
            assert await shown.end() == 4
            await shown.see(b"the connection with the peer was lost")
        await far.start()
