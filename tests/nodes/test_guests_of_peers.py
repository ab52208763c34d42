"""Commands and files in guests of peers' VMs, by real agents: what is asked, cut off, and read on through another node.

The guest is the guest program as a process of this machine, behind the in-memory hypervisor; the last test has a real
one without a network, whose owner is killed.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.guest.disks import tiny_disk
from tests.nodes.fleet import fleet, join, start, until_online
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.guest_stream import Finished, Output

pytestmark = pytest.mark.system

OWNER = "node-3"
SIZE = 20 << 20
LINES = 2000
COUNTING = f"i=0; while [ $i -lt {LINES} ]; do i=$((i + 1)); echo line $i; sleep 0.001; done; exit 5"
SLOW_LINES = 60
SLOW = f"i=0; while [ $i -lt {SLOW_LINES} ]; do i=$((i + 1)); echo line $i; sleep 0.2; done; exit 5"


def lines(count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(1, count + 1))


async def twinshare(node: AgentProcess, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(60):
        return await trio.run_process(
            [sys.executable, "-m", "twinshare", *arguments], check=False, capture_stdout=True, capture_stderr=True,
            stdin=stdin, env={**os.environ, "TWINSHARE_API": node.url},
        )  # fmt: skip


async def create_vm(node: AgentProcess, disk: Path, **more: Any) -> None:
    async with RESTClient(node.url) as client:
        await client.import_image("disk", disk)
        await client.create_vm("far", "disk", memory=128, disk_size=1, cpu_cores=1, start=True, **more)
        with trio.fail_after(120):
            while not (await client.guests().show_guest("far")).ready:
                await trio.sleep(0.05)


async def read_on(node: AgentProcess, session: str, offset: int = 0, until: int | None = None) -> tuple[bytes, Any]:
    """What a client reads through `node` from `offset` on: to the end, or `until` so many bytes have come."""
    whole, end = b"", None
    async with RESTClient(node.url) as client:
        with trio.fail_after(60):
            async with client.attach_session("far", session, offset=offset, peer=OWNER) as stream:
                async for message in stream:
                    if isinstance(message, Finished):
                        end = message
                    else:
                        assert isinstance(message, Output)
                        assert message.offset == offset + len(whole)
                        whole += message.data
                    if until is not None and len(whole) >= until:
                        break
    return whole, end


def blank(folder: Path) -> Path:
    disk = folder / "blank.raw"
    disk.write_bytes(bytes(1 << 20))
    return disk


async def test_a_peers_guest_is_used_as_one_here(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(SIZE)
    source, back, there = tmp_path / "source", tmp_path / "back", tmp_path / "there"
    source.write_bytes(content)
    async with fleet(tmp_path, 3, hypervisor="fake://?guest_program=1") as (one, two, three):
        await create_vm(three, blank(tmp_path))
        command = ("far", "--on", OWNER, "--", "sh", "-c", "echo x; echo y >&2; exit 3")
        done = await twinshare(one, "vm", "exec", *command)
        assert (done.stdout, done.stderr, done.returncode) == (b"x\n", b"y\n", 3)
        found = await twinshare(two, "vm", "exec", "far", "--", "cat", stdin=content)  # found in the fleet by its name
        assert (found.stdout == content, found.returncode) == (True, 0), found.stderr
        done = await twinshare(one, "vm", "cp", "--on", OWNER, str(source), f"far:{there}")
        assert done.returncode == 0, done.stderr
        done = await twinshare(two, "vm", "cp", "--on", OWNER, f"far:{there}", str(back))
        assert done.returncode == 0, done.stderr
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, there, back)}
        assert len(digests) == 1

        async with RESTClient(one.url) as client:
            counting = await client.exec_vm("far", ["sh", "-c", COUNTING], OWNER, detach=True)
        first, _ = await read_on(one, counting.session, until=3000)
        await one.kill()
        rest, end = await read_on(two, counting.session, len(first))
        assert first + rest == lines(LINES)
        assert end == Finished(exit_code=5)
        done = await twinshare(two, "vm", "attach", "far", counting.session, "--on", OWNER)
        assert (done.stdout, done.returncode) == (lines(LINES), 5), done.stderr
        await one.start()
        await until_online(one, "node-2", OWNER)
        assert (await read_on(one, counting.session))[0] == lines(LINES)


async def test_a_killed_owner_of_an_isolated_guest_loses_nothing(tmp_path: Path) -> None:
    """A real guest without a network; its node is killed while it writes, and the node through which it was asked."""
    async with fleet(tmp_path, 2, hypervisor="fake://") as (one, two):
        owner = await start(tmp_path / OWNER)
        try:
            await join(owner, one)
            await until_online(one, "node-2", OWNER)
            await create_vm(owner, await tiny_disk(), network="isolated")
            command = ("far", "--on", OWNER, "--", "sh", "-c", "echo x; echo y >&2; exit 3")
            done = await twinshare(one, "vm", "exec", *command)
            assert (done.stdout, done.stderr, done.returncode) == (b"x\n", b"y\n", 3)
            async with RESTClient(one.url) as client:
                slow = (await client.exec_vm("far", ["sh", "-c", SLOW], OWNER, detach=True)).session
            first, _ = await read_on(one, slow, until=100)
            await one.kill()
            await owner.kill()
            await owner.start()
            await until_online(two, OWNER, within=30)
            rest, end = await read_on(two, slow, len(first))
            assert first + rest == lines(SLOW_LINES)
            assert end == Finished(exit_code=5)
            async with RESTClient(owner.url) as client:
                await client.delete_vm("far", force=True)
        finally:
            with trio.CancelScope(shield=True):
                await owner.stop()
