"""A real guest in QEMU's user-mode networking looks for the machine that carries it, and finds the internet alone."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.sandboxes import OUTSIDE, OWN, agent, in_namespace, lively_world, root
from tests.guest.disks import tiny_disk
from twinshare.agent.vm.guest import build_seed
from twinshare.protocols.vm import CloudInit

pytestmark = [
    pytest.mark.system,
    root,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get for the packages of the guest"),
]
# What user-mode networking shows the guest of its host, then every address that the host has.
NEAR = ("10.0.2.2", "10.0.2.3", *(address for address in OWN if not address.startswith(("127.", "0."))))
SCRIPT = """\
#!/bin/sh
while ! ip route | grep -q default; do sleep 0.2; done
for target in {targets}; do
    heard=$(busybox nc -w 2 ${{target%/*}} ${{target#*/}} </dev/null 2>/dev/null | head -c 8)
    echo "asked $target: $heard." >/dev/console
done
echo "asked everybody" >/dev/console
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="twinshare-"))
    (folder / "vms").mkdir()
    yield folder
    shutil.rmtree(folder)


async def test_a_guest_finds_the_internet_and_nothing_of_its_host(data_dir: Path) -> None:
    disk = await tiny_disk()
    targets = [f"{OUTSIDE}/80", *(f"{address}/8080" for address in NEAR), "169.254.169.254/80"]
    script = SCRIPT.format(targets=" ".join(targets))
    seed = build_seed("00000000-0000-0000-0000-000000000001", "spy", CloudInit(user_data=script))
    (data_dir / "vms/seed.iso").write_bytes(seed)
    shutil.copy(disk, data_dir / "vms/disk.raw")
    with lively_world() as host:
        async with agent(data_dir, prefix=in_namespace(host)) as caller:
            vms = f"{(await caller.tell('state'))['path']}/vms"
            await caller.tell("own", path=vms)
            assert await caller.tell("connected", within=60)
            guest = await caller.tell("spawn", argv=_qemu(vms))
            try:
                said = await _until_said(data_dir / "vms/serial.log", "asked everybody")
            finally:
                await caller.run("kill", "-9", str(guest))
    answers = dict(re.findall(r"asked (\S+): (.*)\.", said))
    assert answers.pop(f"{OUTSIDE}/80") == "internet"
    assert answers == dict.fromkeys(targets[1:], "")


def _qemu(vms: str) -> list[str]:
    return [
        *("qemu-system-x86_64", "-accel", "tcg,tb-size=64", "-machine", "q35", "-m", "128", "-nodefaults"),
        *("-display", "none", "-drive", f"file={vms}/disk.raw,format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={vms}/seed.iso,format=raw,if=virtio,readonly=on"),
        *("-serial", f"file:{vms}/serial.log", "-nic", "user,model=virtio-net-pci"),
    ]


async def _until_said(log: Path, word: str) -> str:
    with trio.move_on_after(90):
        while word not in (said := _read(log)):
            await trio.sleep(0.1)
        return said
    raise AssertionError(f"the guest never said {word!r}")


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""
