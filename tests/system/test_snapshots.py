"""Snapshots by virsh of a VM on real libvirt: an image is made of the active disk, with all that lies below it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import trio

from tests.guest.disks import tick_disk
from tests.system.conftest import once
from tests.system.test_images_in_use import base_of
from tests.system.test_survival import until_tick
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient

pytestmark = pytest.mark.system


async def virsh(agent: AgentProcess, *command: str) -> None:
    """At the node's own libvirt."""
    [socket] = list(agent.data_dir.rglob("libvirt-sock"))
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        short = f"{folder}/s"  # the socket's own path may be longer than a socket's may be
        await trio.to_thread.run_sync(os.symlink, socket, short)
        await trio.run_process(["virsh", "-q", "-c", f"qemu+unix:///session?socket={short}", *command])


async def write(disk: Path, pattern: int, at: str) -> None:
    await trio.run_process(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} 64k", str(disk)])


async def test_an_image_of_a_vm_behind_external_snapshots(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "node") as agent, RESTClient(agent.url) as client:
        await client.import_image("tick", once(tick_disk()))
        made = await client.create_vm("one", "tick", memory=64, disk_size=1, cpu_cores=1)
        folder = agent.data_dir / "vms" / made.id
        await write(folder / "disk.qcow2", 0x5A, "64k")
        await client.start_vm("one")
        await until_tick(client, "one", 2)
        for name in ("first", "second"):
            await virsh(agent, "snapshot-create-as", "one", name, "--disk-only")
        running = await client.images().capture_image("one", "running")
        await client.stop_vm("one", force=True)
        await write(folder / "disk.second", 0x6B, "128k")
        stopped = await client.images().capture_image("one", "stopped")
        for image, pattern in ((running, 0), (stopped, 0x6B)):
            content = base_of(agent, image.digest).read_bytes()
            assert content[64 << 10 : 128 << 10] == b"\x5a" * (64 << 10)
            assert content[128 << 10 : 192 << 10] == bytes([pattern]) * (64 << 10)
        await client.create_vm("two", "stopped", memory=64, disk_size=1, cpu_cores=1, start=True)
        await until_tick(client, "two", 2)
        for name in ("one", "two"):
            await client.delete_vm(name, force=True)
