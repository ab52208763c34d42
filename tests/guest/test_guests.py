"""The test guests boot under plain QEMU and do what other tests rely on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import trio

from tests.guest.disks import tick_disk, tiny_disk
from tests.guest.machine import QEMU, run_machine
from twinshare.agent.images.contract_samples import quiet
from twinshare.agent.images.tiny import guest
from twinshare.agent.images.tiny.build import build_tiny
from twinshare.agent.vm.guest import build_seed
from twinshare.protocols.vm import CloudInit

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed"),
]


async def test_tick_counts_from_its_boot(tmp_path: Path) -> None:
    disk = tmp_path / "tick.raw"
    disk.write_bytes(tick_disk())
    async with run_machine(tmp_path, disk, memory=16) as machine:
        await machine.wait_for("tick 0014", within=30)
        ticks = re.findall(r"tick ([0-9a-f]{4})", machine.console)
        assert [int(tick, 16) for tick in ticks] == list(range(1, len(ticks) + 1))


async def test_tiny_boots_answers_and_powers_off(tmp_path: Path) -> None:
    script = "#!/bin/sh\necho seeded $(hostname) >/dev/console\n"
    seed = tmp_path / "seed.iso"
    seed.write_bytes(build_seed("00000000-0000-0000-0000-000000000001", "web-1", CloudInit(user_data=script)))
    async with run_machine(tmp_path, await tiny_disk(), seed=seed) as machine:
        await machine.wait_for("tiny: address 10.0.2.15 on eth0", within=60)
        await machine.wait_for("seeded web-1", within=10)
        assert await fetch(machine.http_port) == "web-1\n"
        with trio.fail_after(60):
            assert await machine.agent("guest-ping") == {}
            assert (await machine.agent("guest-get-host-name"))["host-name"] == "web-1"
            interfaces = await machine.agent("guest-network-get-interfaces")
        addresses = [a["ip-address"] for i in interfaces for a in i.get("ip-addresses", [])]
        assert "10.0.2.15" in addresses
        await machine.wait_for("no password", within=10)
        await machine.wait_for("web-1 login:", within=10)
        await machine.type("root\n", expect="web-1# ")
        await machine.type("echo $((6 * 7)) is the answer\n", expect="42 is the answer")
        await machine.monitor("system_powerdown")
        with trio.fail_after(60):
            assert await machine.process.wait() == 0


async def test_tiny_without_a_seed_on_little_memory_stops_for_its_agent(tmp_path: Path) -> None:
    async with run_machine(tmp_path, await tiny_disk(), memory=96) as machine:
        await machine.wait_for("tiny: address", within=60)
        assert await fetch(machine.http_port) == "tiny\n"
        stream = await trio.open_unix_socket(tmp_path / "agent.sock")
        async with stream:
            await stream.send_all(b'{"execute": "guest-shutdown"}\n')
            with trio.fail_after(60):
                assert await machine.process.wait() == 0


async def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    first = await tiny_disk()
    shutil.copytree(first.parent / "debs", tmp_path / "debs")
    second = await build_tiny(tmp_path, quiet)
    assert second.name == first.name
    assert second.read_bytes() == first.read_bytes()


def test_every_script_of_the_guest_is_sound_shell() -> None:
    for name, text in guest.SCRIPTS.items():
        done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}"


async def fetch(port: int) -> str:
    """The guest's page. Its server starts a moment after its address, and QEMU drops what comes before."""
    async with httpx.AsyncClient(timeout=5) as client:
        with trio.fail_after(60):
            while True:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/")).text
                except httpx.TransportError:
                    await trio.sleep(0.1)
