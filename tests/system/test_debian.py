"""A distribution's image gets the guest channel by the seed's vendor data alone: systemd, cloud-init, its own sshd."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from tests.guest.debian import can_build, debian_disk
from tests.system.test_ssh import Shell
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

BOOTS_WITHIN = 300.0
VM = "debian"
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not can_build(), reason="needs Debian, root, mmdebstrap and e2fsprogs"),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="needs openssh-client"),
]


def use_ssh(url: str, folder: Path) -> None:
    """The image's own sshd and rsync, with its host keys pinned before the first connection."""
    shell = Shell(url, folder)
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content" * 1000)
    assert shell.run(f"{shell.ssh} -o StrictHostKeyChecking=yes {VM}.twin 'id -un; exit 5'", 5) == "root\n"
    assert f"{VM}.twin ssh-ed25519 " in (folder / "mine/ssh/known_hosts").read_text()
    if shutil.which("rsync"):
        shell.run(f"rsync -a -e '{shell.ssh}' {tree}/ {VM}.twin:/srv/tree")
        shell.run(f"rsync -a -e '{shell.ssh}' {VM}.twin:/srv/tree/ {folder}/back && diff -r {tree} {folder}/back")


async def test_vendor_data_bring_the_channel(node: AgentProcess, tmp_path: Path) -> None:
    async with RESTClient(node.url) as client:
        await client.import_image("debian", await debian_disk())
        await client.create_vm(VM, "debian", memory=512, disk_size=1, cpu_cores=1, start=True)
        try:
            with trio.fail_after(BOOTS_WITHIN):
                while not (await client.guests().show_guest(VM)).ready:
                    await trio.sleep(0.5)
            done = await client.exec_vm(VM, ["sh", "-c", ". /etc/os-release; echo $ID; hostname; id -un"], timeout=60)
            assert done.stdout == f"debian\n{VM}\nroot\n"
            seeded = await client.exec_vm(VM, ["cat", "/root/.ssh/authorized_keys"], timeout=60)
            assert " twinshare node shared\n" in seeded.stdout
            await trio.to_thread.run_sync(use_ssh, node.url, tmp_path)
        finally:
            await client.delete_vm(VM, force=True)
            await client.images().remove_image("debian")
