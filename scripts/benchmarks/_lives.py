"""Lives of VMs side by side (created, started, stopped, deleted) by REST and the same by virsh."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from scripts.benchmarks.rows import Row
from twinshare.api.rest_client import RESTClient

TOGETHER = (8, 32)
ROUNDS = 3


async def parallel_lives(client: RESTClient, data_dir: Path) -> list[Row]:
    """The middle one of three ratios, each of two measurements right after each other."""
    template = await _create(client, "template")
    plain = _Virsh(data_dir, template)
    rows = []
    for count in TOGETHER:
        found = []
        for number in range(ROUNDS):
            ours = await _timed(count, lambda name: _by_rest(client, name), f"rest-{number}")
            found.append((ours, await _timed(count, plain.live, f"virsh-{number}")))
        ours, theirs = sorted(found, key=lambda pair: pair[0] / pair[1])[ROUNDS // 2]
        rows.append(
            Row(
                name=f"{count} parallel lives on QEMU", value=ours, baseline=theirs, unit="s", limit=1.1,
                note="baseline: by virsh",
            )
        )  # fmt: skip
    await client.delete_vm("template")
    return rows


async def _timed(count: int, live: Callable[[str], Awaitable[None]], prefix: str) -> float:
    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(live, f"{prefix}-{number}")
    return time.perf_counter() - begun


async def _create(client: RESTClient, name: str) -> str:
    return (await client.create_vm(name, "tick", memory=64, disk_size=1, cpu_cores=1)).id


async def _by_rest(client: RESTClient, name: str) -> None:
    await _create(client, name)
    await client.start_vm(name)
    await client.stop_vm(name, force=True)
    await client.delete_vm(name)


class _Virsh:
    """Copies of a VM that REST has made, in the same libvirt daemon."""

    def __init__(self, data_dir: Path, template: str) -> None:
        socket = data_dir / "hypervisor/r/libvirt/libvirt-sock"
        self._command = ["virsh", "-q", "-c", f"qemu+unix:///session?socket={socket}"]
        self._root, self._template = data_dir / "vms", template
        dumped = subprocess.run([*self._command, "dumpxml", template], check=True, capture_output=True, text=True)
        # Without what would make it a VM of the node, and with a MAC address of its own.
        self._xml = re.sub(r"<metadata>.*</metadata>|<mac address=[^>]*>", "", dumped.stdout, flags=re.DOTALL)

    async def live(self, name: str) -> None:
        id = str(uuid.uuid4())
        folder = self._root / id
        await trio.to_thread.run_sync(partial(self._copy, folder))
        xml = self._xml.replace(self._template, id).replace("<name>template</name>", f"<name>{name}</name>")
        await trio.run_process([*self._command, "define", "/dev/stdin"], stdin=xml.encode())
        for verb in ("start", "destroy", "undefine"):
            await trio.run_process([*self._command, verb, id])
        await trio.to_thread.run_sync(shutil.rmtree, folder)

    def _copy(self, folder: Path) -> None:
        subprocess.run(["cp", "-a", str(self._root / self._template), str(folder)], check=True)
