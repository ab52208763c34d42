"""What the guide names beside the API: the start script, the service file, the example."""

import configparser
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.ports import free_port
from twinshare.agent.images.contract_samples import raw_disk
from twinshare.agent.testing import AgentProcess, open_agent
from twinshare.api.rest_client import RESTClient

TOP = Path(__file__).resolve().parents[2]
SERVICE = TOP / "scripts" / "twinshare-rest-api.service"
pytestmark = pytest.mark.system


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script beside an environment of its own, as in a checkout that scripts/setup has made ready."""
    top = tmp_path / "checkout"
    (top / "scripts").mkdir(parents=True)
    (top / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(TOP / "scripts" / "start_rest_api.py", top / "scripts")
    python = top / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{TOP}" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return top


def script(checkout: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TWINSHARE_DATA_DIR": str(home), "TWINSHARE_HYPERVISOR_URI": "fake://"}
    environment["TWINSHARE_P2P_ENABLED"] = "false"
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    command = [python, str(checkout / "scripts" / "start_rest_api.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)


def test_the_start_script_as_the_guide_uses_it(checkout: Path, tmp_path: Path) -> None:
    home, log, port = tmp_path / "home", tmp_path / "custom.log", str(free_port())
    assert (script(checkout, home, "status").returncode, script(checkout, home, "stop").returncode) == (4, 0)
    try:
        started = script(
            checkout, home, "start", "--host", "127.0.0.1", "--port", port, "--debug", "--log-file", str(log)
        )
        assert (started.returncode, started.stderr) == (0, "")
        assert f"http://127.0.0.1:{port}" in started.stdout
        assert "ready" in log.read_text()
        (pid,) = re.findall(r"pid (\d+)", started.stdout)
        for command in ("start", "status"):
            again = script(checkout, home, command)
            assert (again.returncode, f"pid {pid}" in again.stdout) == (0, True)
        restarted = script(checkout, home, "restart", "--port", port)
        assert restarted.returncode == 0
        assert f"pid {pid}" not in restarted.stdout
        assert (home / "agent.log").exists()
    finally:
        assert script(checkout, home, "stop").returncode == 0
    assert script(checkout, home, "status").stdout == "twinshare: not running\n"


def test_the_start_script_calls_setup_when_nothing_is_installed(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    setup = checkout / "scripts" / "setup"
    setup.write_text("#!/bin/sh\necho run this >&2\nexit 3\n")
    setup.chmod(0o755)
    result = script(checkout, tmp_path / "home", "start")
    assert (result.returncode, result.stderr) == (3, "run this\n")
    assert script(checkout, tmp_path / "home", "status").returncode == 4


def test_the_start_script_says_why_a_node_did_not_start(checkout: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        failed = script(checkout, tmp_path / "home", "start", "--port", str(taken.getsockname()[1]))
    assert failed.returncode == 1
    assert "the port is in use" in failed.stdout


def test_a_killed_agent_is_not_taken_for_a_running_one(checkout: Path, tmp_path: Path) -> None:
    """Its agent.json is still there, and its pid may be somebody else's by now."""
    home = tmp_path / "home"
    home.mkdir()
    agent_file = {"pid": os.getpid(), "name": "x", "api_url": "http://127.0.0.1:1"}
    (home / "agent.json").write_text(json.dumps(agent_file))
    (home / "lock").write_text(f"{os.getpid()}\n")
    assert script(checkout, home, "status").returncode == 4
    assert script(checkout, home, "stop").stdout == "twinshare: not running\n"


async def test_the_start_script_stays_in_the_foreground(checkout: Path, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "home", [], {})
    command = [sys.executable, str(checkout / "scripts" / "start_rest_api.py"), "start", "--foreground", "--port", "0"]
    environment = {**os.environ, "TWINSHARE_DATA_DIR": str(agent.data_dir), "TWINSHARE_HYPERVISOR_URI": "fake://"}
    process = await trio.lowlevel.open_process(command, env=environment, stderr=subprocess.DEVNULL)
    with trio.fail_after(60):
        while not (agent.data_dir / "agent.json").exists():
            assert process.poll() is None
            await trio.sleep(0.02)
        process.terminate()
        assert await process.wait() == 0


async def test_the_example_runs_as_written(tmp_path: Path) -> None:
    async with open_agent(tmp_path / "a", "--hypervisor", "fake://") as agent:
        environment = {**os.environ, "TWINSHARE_API": agent.url, "PYTHONPATH": str(TOP)}
        command = [sys.executable, str(TOP / "examples" / "rest_api_usage.py")]
        without = await trio.run_process(command, capture_stderr=True, check=False, env=environment)
        assert (without.returncode, b"twinshare image build-tiny" in without.stderr) == (1, True)

        (tmp_path / "disk").write_bytes(raw_disk(1))
        async with RESTClient(agent.url) as client:
            await client.import_image("tiny", tmp_path / "disk")
        # Twice: a run clears what a former one left.
        for _ in range(2):
            with trio.fail_after(60):
                done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, env=environment)
        assert done.stderr == b""
        for said in (b"created example-vm", b"op.done", b"started: running", b"stopped: stopped", b"deleted: True"):
            assert said in done.stdout


def test_the_service_is_hardened() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # its documented way to keep capitals
    unit.read(SERVICE)
    service = unit["Service"]
    wanted = {
        "Type": "notify",
        "User": "twinshare",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "KillMode": "process",
    }
    assert {name: service[name] for name in wanted} == wanted
    assert service["SystemCallFilter"].split()[0] == "@system-service"
    assert int(service["WatchdogSec"]) > 0


def test_systemd_understands_the_service(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    unit = tmp_path / SERVICE.name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", SERVICE.read_text()))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")
