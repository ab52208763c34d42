"""What lives on: guests when the agent and then the libvirt daemon are killed, events for those who come back."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.guest.disks import tick_disk
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.events import Event
from twinshare.protocols.vm import Vm, VmStatus

pytestmark = pytest.mark.system


async def with_tick(client: RESTClient, name: str) -> Vm:
    """A running guest that counts."""

    async def disk() -> AsyncIterator[bytes]:
        yield tick_disk()

    await client.import_image("tick", disk())
    vm = await client.create_vm(name, "tick", memory=64, disk_size=1, cpu_cores=1, start=True)
    await until_tick(client, name, 5)
    return vm


async def ticks(client: RESTClient, name: str) -> list[int]:
    """Every count that the guest has printed, in order."""
    log = await client.vms().vm_log(name, offset=0, limit=262144)
    return [int(found, 16) for found in re.findall(r"tick ([0-9a-f]{4})\r?\n", log.text)]


async def until_tick(client: RESTClient, name: str, least: int) -> None:
    with trio.fail_after(60):
        while len(await ticks(client, name)) < least:
            await trio.sleep(0.1)


async def events_after(client: RESTClient, number: int, wanted: int) -> list[Event]:
    found: list[Event] = []
    with trio.fail_after(60):
        async with client.events(after=number) as events:
            async for event in events:
                found.append(event)
                if len(found) == wanted:
                    break
    return found


def daemon_pid(agent: AgentProcess) -> int:
    """The node's private libvirtd, by the file it writes."""
    return int((agent.data_dir / "hypervisor" / "r" / "daemon.pid").read_text())


async def until_reachable(client: RESTClient, name: str) -> Vm:
    """The VM, once the node sees it running through a hypervisor that answers."""
    with trio.fail_after(20):
        while True:
            health = await client.node().health()
            if health.status == "ok":
                vm = await client.get_vm_status(name)
                if vm.status is VmStatus.RUNNING:
                    return vm
            await trio.sleep(0.05)


async def test_a_guest_outlives_the_agent_and_the_daemon(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "node", "--name", "node") as agent:
        async with RESTClient(agent.url) as client:
            made = await with_tick(client, "one")
            seen = await events_after(client, 0, 3)
        before = json.loads((tmp_path / "node" / "agent.json").read_text())
        await agent.kill()
        await agent.start()
        async with RESTClient(agent.url) as client:
            again = await until_reachable(client, "one")
            assert (again.id, again.created_at) == (made.id, made.created_at)
            assert again.uptime is not None
            assert agent.agent_file["peer_id"] == before["peer_id"]
            missed = await events_after(client, seen[0].id, 2)
            assert [event.id for event in missed] == [event.id for event in seen[1:]]
            os.kill(daemon_pid(agent), signal.SIGKILL)
            later = await until_reachable(client, "one")
            assert later.id == made.id
            assert later.uptime is not None
            assert later.uptime >= again.uptime
            count = len(await ticks(client, "one"))
            await until_tick(client, "one", count + 5)
            counted = await ticks(client, "one")
            # A restarted guest would begin at 1 again.
            assert counted == list(range(counted[0], counted[0] + len(counted)))
            with pytest.raises(TwinshareError, match="stop it first"):
                await client.delete_vm("one")
            await client.delete_vm("one", force=True)
            assert await client.list_vms() == []
        assert await agent.stop() == 0
    assert not (tmp_path / "node" / "agent.json").exists()
    assert list((tmp_path / "node" / "vms").iterdir()) == []


async def test_a_vm_that_died_while_nobody_watched_is_reported(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "node") as agent:
        async with RESTClient(agent.url) as client:
            await with_tick(client, "one")
            await agent.kill()
        guest = int((agent.data_dir / "hypervisor" / "r" / "libvirt/qemu/run/one.pid").read_text())
        os.kill(guest, signal.SIGKILL)
        await agent.start()
        async with RESTClient(agent.url) as client:
            with trio.fail_after(60):
                while (vm := await client.get_vm_status("one")).status is VmStatus.RUNNING:
                    await trio.sleep(0.05)
            assert vm.status is VmStatus.CRASHED
            assert (await client.start_vm("one")).status is VmStatus.RUNNING
            await client.delete_vm("one", force=True)
