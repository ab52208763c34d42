"""The script that brings the guest program into a guest: what it writes is the program, and that starts."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from twinshare.agent.guest_program.bundle import PORT_PATH, program_zip
from twinshare.agent.vm.vendor_data import ARCHIVE, FOLDER, vendor_data
from twinshare.protocols.guest_channel import ANNOUNCE


def test_the_script_installs_the_program_and_it_starts(tmp_path: Path) -> None:
    """In a folder of its own, and with `true` for the commands that would change this machine."""
    script = vendor_data()
    ours = script[: script.index("if [ -d /run/systemd/system ]")].replace(FOLDER, str(tmp_path))
    near, far = socket.socketpair()
    with near, far:
        ours = ours.replace(PORT_PATH, f"fd:{far.fileno()}").replace("while [ ! -e", "while [ -e")
        subprocess.run(["sh", "-c", ours], check=True, timeout=30)
        assert (tmp_path / Path(ARCHIVE).name).read_bytes() == program_zip()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        process = subprocess.Popen([tmp_path / "run-guest"], pass_fds=[far.fileno()], env=environment)
        far.close()
        near.settimeout(10)
        heard = b""
        while ANNOUNCE not in heard:
            part = near.recv(65536)
            assert part, "the program ended"
            heard += part
        near.close()
        assert process.wait(10) == 0


def test_a_program_that_dies_is_started_again_without_an_init_system(tmp_path: Path) -> None:
    """In place of Python there is a script that notes its start, and ends."""
    script = vendor_data().replace(FOLDER, str(tmp_path)).replace("while [ ! -e", "while [ -e")
    script = script.replace("/run/systemd/system", str(tmp_path / "none")).replace("openrc-run", "no-openrc-run")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text(f"#!/bin/sh\necho started >>{tmp_path}/starts\nexit 1\n")
    (tmp_path / "bin/python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    os.mkfifo(tmp_path / "starts")
    starts = os.open(tmp_path / "starts", os.O_RDWR)
    with subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True) as process:
        assert process.wait(30) == 0
    try:
        for _ in range(2):
            assert select.select([starts], [], [], 30)[0], "it is not started again"
            assert os.read(starts, len(b"started\n")) == b"started\n"
    finally:
        os.close(starts)
        os.killpg(process.pid, signal.SIGKILL)


def test_the_key_of_the_node_is_let_in_once(tmp_path: Path) -> None:
    """The script's first part, with this test's users and homes."""
    key = "ssh-ed25519 AAAA twinshare node a'b"
    script = vendor_data(key)
    ours = script[: script.index("# Serves commands")].replace("/etc/passwd", str(tmp_path / "passwd"))
    users = [("root", 0, "root"), ("daemon", 1, "daemon"), ("debian", 1000, "debian"), ("nobody", 65534, "nobody")]
    (tmp_path / "passwd").write_text(
        "".join(f"{name}:x:{id}:{id}::{tmp_path}/{home}:/bin/sh\n" for name, id, home in users)
    )
    for name in ("root", "daemon", "debian", "nobody"):
        (tmp_path / name).mkdir()
    (tmp_path / "root/.ssh").mkdir()
    (tmp_path / "root/.ssh/authorized_keys").write_text("another\n")
    for _ in range(2):
        ours = ours.replace("    chown", "    : chown")  # the users are not this machine's
        subprocess.run(["sh", "-ec", ours], check=True, timeout=30)
    found = {file.parts[-3]: file.read_text() for file in tmp_path.glob("*/.ssh/authorized_keys")}
    assert found == {"root": f"another\n{key}\n", "debian": f"{key}\n"}
    assert (tmp_path / "debian/.ssh").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "debian/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600


def test_without_a_key_nobody_is_let_in(tmp_path: Path) -> None:
    script = vendor_data()
    (tmp_path / "passwd").write_text(f"root:x:0:0::{tmp_path}:/bin/sh\n")
    ours = script[: script.index("# Serves commands")].replace("/etc/passwd", str(tmp_path / "passwd"))
    subprocess.run(["sh", "-ec", ours], check=True, timeout=30)
    assert not (tmp_path / ".ssh").exists()


def test_every_way_to_start_it_is_well_formed(tmp_path: Path) -> None:
    script = vendor_data()
    assert script.startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n"], input=script, text=True, timeout=10, check=False).returncode == 0
    assert len(script) < 64 << 10
