"""`twinshare lab`: a fleet on this machine by one command, as a reader of the guide would try it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.system

TWINSHARE = [sys.executable, "-m", "twinshare"]
TOP = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOP)}


@contextmanager
def lab(folder: Path, count: int, *, killed: bool = False) -> Iterator[list[dict[str, Any]]]:
    """The agents of the nodes, once every node sees every other."""
    command = [*TWINSHARE, "lab", "up", str(count), "--dir", str(folder), "--hypervisor", "fake://", "--json"]
    with (folder.parent / "lab.err").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT)
        assert process.stdout is not None
        try:
            said = ""
            while not said.endswith("\n]\n"):
                line = process.stdout.readline()
                errors.seek(0)
                assert line, errors.read()
                said += line
            yield json.loads(said)
        finally:
            process.terminate()
            process.stdout.close()
            assert process.wait(60) == (-signal.SIGKILL if killed else 0)


def test_three_nodes_see_each_other_and_end_together(tmp_path: Path) -> None:
    began = time.monotonic()
    with lab(tmp_path / "lab", 3) as agents:
        print(f"\nthree nodes see each other after {time.monotonic() - began:.1f} s")
        assert [agent["name"] for agent in agents] == ["node-1", "node-2", "node-3"]
        for agent in agents:
            peers = httpx.get(f"{agent['api_url']}/api/p2p/peers").json()["peers"]
            assert {peer["name"] for peer in peers if peer["status"] == "online"} | {agent["name"]} == {
                "node-1", "node-2", "node-3",
            }  # fmt: skip
        command = [*TWINSHARE, "lab", "up", "1", "--dir", str(tmp_path / "lab")]
        again = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert (again.returncode, "lab down" in again.stderr) == (1, True)
    assert not list((tmp_path / "lab").glob("*/agent.json"))


def test_a_lab_that_comes_back_is_the_same_fleet(tmp_path: Path) -> None:
    with lab(tmp_path / "lab", 2) as first:
        pass
    with lab(tmp_path / "lab", 2) as second:
        assert [agent["peer_id"] for agent in second] == [agent["peer_id"] for agent in first]


def test_the_others_live_when_one_node_is_killed(tmp_path: Path) -> None:
    with lab(tmp_path / "lab", 2) as (first, second):
        os.kill(second["pid"], signal.SIGKILL)
        wait_until(lambda: "node-2 ended with -9" in (tmp_path / "lab.err").read_text())
        assert httpx.get(f"{first['api_url']}/api/health").json()["status"]
    assert not list((tmp_path / "lab").glob("*/agent.json"))


def test_down_ends_what_outlived_a_killed_lab(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    down = [*TWINSHARE, "lab", "down", "--dir", str(folder)]
    with lab(folder, 2, killed=True) as (first, second):
        os.kill(second["pid"], signal.SIGKILL)
        lab_pid = json.loads((folder / "lab.json").read_text())["pid"]
        os.kill(lab_pid, signal.SIGKILL)
        ended = subprocess.run(down, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=120)
    assert "has ended" in ended.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{first['api_url']}/api/health")
    assert not list(folder.glob("*/agent.json"))
    again = subprocess.run(down, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=60)
    assert "no lab runs" in again.stderr


def wait_until(condition: Callable[[], bool]) -> None:
    event, ends = threading.Event(), time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        event.wait(0.02)


def test_ten_nodes_converge(tmp_path: Path) -> None:
    began = time.monotonic()
    with lab(tmp_path / "lab", 10) as agents:
        print(f"\nten processes see each other after {time.monotonic() - began:.1f} s")
        assert len({agent["peer_id"] for agent in agents}) == 10
