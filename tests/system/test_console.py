"""The serial console of a real guest: a person logs in through the command, in a terminal."""

from __future__ import annotations

import re

import pytest
import trio

from tests.api.test_cli_console import piped, terminal
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
