"""What lives on when an agent is killed, and how the next one finds it."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.sandboxes import QEMU, QMP_PORT, agent, exists, greeting, root, running
from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox, open_sandbox

pytestmark = [pytest.mark.system, root]


async def heard(sandbox: Sandbox, port: int) -> str:
    async with await sandbox.dial(port) as stream:
        return (await stream.receive_some(1000)).decode()


def supervisor_of(data_dir: Path) -> int:
    return int(json.loads((data_dir / "enclosure.json").read_text())["keeper"][0])


async def gone(*pids: int) -> None:
    with trio.fail_after(60):
        while exists(*(f"/proc/{pid}" for pid in pids)):
            await trio.sleep(0.02)


async def tidy(data_dir: Path) -> None:
    """A killed agent leaves a link behind, which the next one takes away."""
    async with open_sandbox(data_dir) as sandbox:
        pass
    assert not exists(sandbox.path, f"{sandbox.path}.sock")


async def end(pid: int) -> None:
    """Terminate it as QEMU is; a daemon's handle died with its agent."""
    os.kill(pid, signal.SIGTERM)
    await gone(pid)


async def test_guests_and_their_network_outlive_a_killed_agent(tmp_path: Path) -> None:
    async with agent(tmp_path) as first:
        guest = await first.tell("spawn", argv=QEMU)
        assert "QMP" in await greeting(partial(first.tell, "dial", port=QMP_PORT))
        await first.kill()
    async with open_sandbox(tmp_path) as sandbox:
        assert guest in sandbox.pids()
        assert "QMP" in await heard(sandbox, QMP_PORT)
        assert not await sandbox.release()
        await end(guest)
    assert not exists(sandbox.path)


async def test_the_way_out_outlives_a_killed_agent(tmp_path: Path) -> None:
    async with agent(tmp_path) as first:
        guest = await first.tell("spawn", argv=QEMU)
        if not await first.tell("connected", within=3):
            pytest.skip("this machine has no network")
        before = set((await first.tell("state"))["pids"])
        await first.kill()
    async with agent(tmp_path) as second:
        assert set((await second.tell("state"))["pids"]) == before
        assert await second.tell("connected", within=0)
        await end(guest)


async def test_nothing_outlives_a_killed_agent_that_had_no_guest(tmp_path: Path) -> None:
    async with agent(tmp_path) as first:
        await first.tell("connected", within=3)
        pids = (await first.tell("state"))["pids"]
        supervisor = supervisor_of(tmp_path)
        await first.kill()
    await gone(supervisor, *pids)
    await tidy(tmp_path)


async def test_a_tool_dies_with_its_agent(tmp_path: Path) -> None:
    async with agent(tmp_path) as first:
        await first.order("run", argv=["sleep", "602"])
        with trio.fail_after(60):
            while not (pids := running("sleep 602")):
                await trio.sleep(0.02)
        await first.kill()
    await gone(*pids)
    await tidy(tmp_path)


async def test_a_killed_supervisor_is_replaced_and_its_guests_are_found(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        guest = await sandbox.spawn(QEMU, env={}, stderr=tmp_path / "log")
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
        before = supervisor_of(tmp_path)
        os.kill(before, signal.SIGKILL)
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
        assert supervisor_of(tmp_path) != before
        assert guest.pid in sandbox.pids()
        assert guest.poll() is None
        done = await sandbox.run(["cat", "/proc/self/status"])
        assert b"NoNewPrivs:\t1" in done.stdout
        await end(guest.pid)
        assert guest.poll() == 255


async def test_namespaces_are_known_by_more_than_their_number(tmp_path: Path) -> None:
    """The kernel gives numbers of dead namespaces to new ones: here another node's look like ours."""
    async with open_sandbox(tmp_path / "other") as other:
        stranger = await other.spawn(QEMU, env={}, stderr=tmp_path / "log")
        record = json.loads((tmp_path / "other/enclosure.json").read_text())
        (tmp_path / "mine").mkdir()
        directory = [(tmp_path / "mine").stat().st_dev, (tmp_path / "mine").stat().st_ino]
        mine = {**record, "id": "00c0ffee", "path": "/run/twinshare/00c0ffee", "directory": directory}
        mine |= {"keeper": None, "outlet": None}
        (tmp_path / "mine/enclosure.json").write_text(json.dumps(mine))
        async with open_sandbox(tmp_path / "mine") as sandbox:
            assert stranger.pid not in sandbox.pids()
            assert (await sandbox.run(["ls", str(sandbox.path)])).returncode == 0
        stranger.terminate()
        await stranger.wait()


async def test_a_killed_supervisor_without_guests_is_made_anew(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        os.kill(supervisor_of(tmp_path), signal.SIGKILL)
        assert (await sandbox.run(["echo", "well"])).stdout == b"well\n"
        assert (await sandbox.run(["ls", str(sandbox.path)])).stdout.split() == [b"hypervisor", b"images", b"vms"]


async def test_a_daemons_orphans_are_reaped_at_once(tmp_path: Path) -> None:
    async with open_sandbox(tmp_path) as sandbox:
        done = await sandbox.run(["sh", "-c", "setsid sleep 603 >/dev/null 2>&1 & echo $!"])
        orphan = int(done.stdout)
        assert orphan in sandbox.pids()
        os.kill(orphan, signal.SIGKILL)
        await gone(orphan)


async def test_no_way_out_is_orphaned_however_early_its_agent_is_killed(tmp_path: Path) -> None:
    """It does not begin before the supervisor knows of it, whose end it shares."""
    pids: set[int] = set()
    for pause in (0.1, 0.18, 0.2, 0.21, 0.22, 0.24, 0.27, 0.3):
        async with agent(tmp_path) as caller:
            await trio.sleep(pause)
            record = json.loads((tmp_path / "enclosure.json").read_text())
            pids |= {process[0] for process in (record["keeper"], record["outlet"]) if process}
            await caller.kill()
            record = json.loads((tmp_path / "enclosure.json").read_text())
            pids |= {record["outlet"][0]} if record["outlet"] else set()
    await gone(*pids)
    await tidy(tmp_path)
