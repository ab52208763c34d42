"""The system's ssh, scp, sftp and rsync, unmodified, with the block of `twinshare ssh-config`: no question is asked.

The guest is this machine, whose sshd the guest program starts for each connection. All of it runs in a mount
namespace of its own, which keeps what is written to root's home.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

from tests.api.test_guest_api import running

SSHD = Path("/usr/sbin/sshd")
NEEDED = ("ssh", "scp", "sftp", "unshare")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root for a mount namespace"),
    pytest.mark.skipif(not SSHD.exists(), reason="needs openssh-server (its service need not run)"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="needs openssh-client and util-linux"),
]


def test_the_systems_own_tools_reach_a_guest(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    parts = f"lowerdir=/root,upperdir={layer}/up,workdir={layer}/work"
    walk = f"""set -e
        mount -t tmpfs none {layer}; mkdir {layer}/up {layer}/work
        mount -t overlay overlay -o {parts} /root; rm -rf /root/.ssh
        exec {sys.executable} -m tests.system.test_ssh"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", walk],
        env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def use(url: str, folder: Path) -> None:
    """Walk through the tools against a node. Raises: AssertionError."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "TWINSHARE_API": url, "TWINSHARE_DATA_DIR": str(folder / "mine"), "PATH": path}
    config, big = folder / "config", folder / "big"

    def run(line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["sh", "-c", line], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, (line, done.returncode, done.stdout, done.stderr)
        assert "authenticity" not in done.stderr
        return done.stdout

    run(f"twinshare ssh-config > {config}")
    big.write_bytes(os.urandom(3_000_000))
    ssh = f"ssh -F {config}"
    # The simulated guest has another home than the sshd of this machine looks into.
    run(f"{ssh} -o BatchMode=yes one.twin true", 255)
    run(f"mkdir -m 700 /root/.ssh; cp {folder}/node/vms/*/guest/.ssh/authorized_keys /root/.ssh/")
    assert run(f"{ssh} one.twin 'echo hello; exit 5'", 5) == "hello\n"
    assert run("twinshare vm ssh one id -un") == "root\n"
    assert run(f"{ssh} one.here.twin id -un") == "root\n"
    run(f"scp -F {config} {big} one.twin:{folder}/by-scp && cmp {big} {folder}/by-scp")
    run(f"echo 'put {big} {folder}/by-sftp' | sftp -F {config} -b - one.twin && cmp {big} {folder}/by-sftp")
    if shutil.which("rsync"):
        run(f"mkdir {folder}/tree && cp {big} {folder}/tree")
        run(f"rsync -a -e '{ssh}' {folder}/tree/ one.twin:{folder}/there && diff -r {folder}/tree {folder}/there")
    known = (folder / "mine/ssh/known_hosts").read_text()
    assert "one.twin ssh-ed25519 " in known
    # Another key than the channel has is refused.
    (folder / "mine/ssh/known_hosts").write_text("")
    other = f"{ssh} -o UserKnownHostsFile={folder}/wrong -o StrictHostKeyChecking=yes one.twin true"
    run(other, 255)


async def main() -> None:
    folder = Path(tempfile.mkdtemp())
    async with running(folder / "node") as api:
        await trio.to_thread.run_sync(use, api.url, folder)


if __name__ == "__main__":
    trio.run(main)
