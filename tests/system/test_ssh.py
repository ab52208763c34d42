"""The system's ssh, scp and sftp, unmodified, with the block of `twinshare ssh-config`, on a VM without any network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.ports import free_port
from twinshare.agent.testing import AgentProcess
from twinshare.api.rest_client import RESTClient

NEEDED = ("ssh", "scp", "sftp")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="needs openssh-client"),
]
VM = "shell"


class Shell:
    """Command lines of a user whose ssh has the block of `twinshare ssh-config`."""

    def __init__(self, url: str, folder: Path) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "TWINSHARE_API": url, "TWINSHARE_DATA_DIR": f"{folder}/mine", "PATH": path}
        self.config = folder / "config"
        self.run(f"twinshare ssh-config > {self.config}")
        self.ssh = f"ssh -F {self.config}"

    def run(self, line: str, code: int = 0) -> str:
        done = subprocess.run(
            ["sh", "-c", line], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == code, (line, done.returncode, done.stdout, done.stderr)
        assert "authenticity" not in done.stderr
        return done.stdout


def check_commands(shell: Shell, folder: Path) -> None:
    assert shell.run(f"{shell.ssh} {VM}.twin 'echo hello; exit 5'", 5) == "hello\n"
    assert shell.run(f"{shell.ssh} {VM}.shared.twin id -u") == "0\n"
    # The guest makes its key for the first connection, and reports it soon after; another one is refused.
    shell.run(f"until curl -sf $TWINSHARE_API/api/vm/{VM}/guest | grep -q ssh-ed25519; do sleep 0.2; done")
    assert shell.run(f"twinshare vm ssh {VM} 'cat; id -u' </dev/null") == "0\n"
    known = (folder / "mine/ssh/known_hosts").read_text()
    assert f"{VM}.twin ssh-ed25519 " in known
    other = (folder / "mine/ssh/id_ed25519.pub").read_text()
    (folder / "wrong").write_text(f"{VM}.twin {other}")
    shell.run(f"{shell.ssh} -o UserKnownHostsFile={folder}/wrong {VM}.twin true", 255)


def check_copies(shell: Shell, folder: Path) -> None:
    big = folder / "big"
    big.write_bytes(os.urandom(1_000_000))
    shell.run(f"scp -F {shell.config} {big} {VM}.twin:/tmp/by-scp")
    shell.run(f"scp -F {shell.config} {VM}.twin:/tmp/by-scp {folder}/back && cmp {big} {folder}/back")
    orders = f"put {big} /tmp/by-sftp\\nget /tmp/by-sftp {folder}/back-by-sftp\\n"
    shell.run(f"printf '{orders}' | sftp -F {shell.config} -b - {VM}.twin && cmp {big} {folder}/back-by-sftp")


@contextmanager
def master(shell: Shell, folder: Path, *options: str) -> Iterator[str]:
    """A connection that others share, as editors have it. Yields the command line of those."""
    share = f"{shell.ssh} -S {folder}/control"
    shell.run(f"{share} -M -f -N {' '.join(options)} {VM}.twin 2>{folder}/master.log")
    try:
        yield share
    finally:
        shell.run(f"{share} -O exit {VM}.twin")


def check_forwards(shell: Shell, folder: Path) -> None:
    """What an editor does: one connection for commands, a port of this machine, and a proxy to all of the guest's."""
    port, proxy = free_port(), free_port()
    with master(shell, folder, f"-L 127.0.0.1:{port}:localhost:80", f"-D 127.0.0.1:{proxy}") as share:
        assert shell.run(f"{share} -O check {VM}.twin 2>&1").startswith("Master running")
        assert shell.run(f"{share} {VM}.twin hostname") == f"{VM}\n"
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=30, trust_env=False).text == f"{VM}\n"
        answer = shell.run(f"curl -s --socks5-hostname 127.0.0.1:{proxy} http://localhost/")
        assert answer == f"{VM}\n"


def walk(url: str, folder: Path) -> None:
    shell = Shell(url, folder)
    check_commands(shell, folder)
    check_copies(shell, folder)
    check_forwards(shell, folder)


async def test_the_systems_own_tools_reach_a_guest(node: AgentProcess, tmp_path: Path) -> None:
    async with RESTClient(node.url) as client:
        await client.create_vm(VM, "tiny", memory=128, disk_size=1, cpu_cores=1, network="isolated", start=True)
        try:
            with trio.fail_after(120):
                while not (await client.guests().show_guest(VM)).ready:
                    await trio.sleep(0.1)
            await trio.to_thread.run_sync(walk, node.url, tmp_path)
        finally:
            await client.delete_vm(VM, force=True)
