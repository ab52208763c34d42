"""kill -9 at every boundary of the journal and at random instants: no duplicate, no orphan, nothing half done."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIVES = Path(__file__).with_name("lives.py")
WHOLE = {"disk.qcow2", "seed.iso"}


def run_lives(*arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(LIVES), *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=LIVES.parents[2], env={"PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(pair: dict[str, Any]) -> None:
    """After the second life: the client has its answer, and the machine holds what it says and nothing else."""
    assert pair["status"] == 0, pair
    seen, expected = pair["seen"], pair["expected"]
    assert len(seen["vms"]) == expected["vms"], pair
    assert sorted(seen["directories"]) == sorted(seen["vms"]), pair
    assert set(seen["files"]) <= WHOLE | {"tty.log"}, pair
    assert len(seen["files"]) >= 2 * expected["vms"], pair
    assert set(seen["states"]) == (set() if "token" in pair["scenario"] else {"done"}), pair
    for owned in ("forwards", "images", "tunnels", "tokens"):
        assert seen[owned] == expected[owned], pair


@pytest.mark.system
def test_every_boundary_of_the_journal(memory_path: Path) -> None:
    pairs = run_lives("boundaries", str(memory_path))
    for pair in pairs:
        check(pair)
    assert sum(pair["killed"] for pair in pairs) >= 40
    assert {pair["scenario"] for pair in pairs if pair["killed"]} == {
        "create", "create+start", "start", "stop", "restart", "delete", "forward", "remove forward", "capture",
        "remove image", "tunnel", "tunnel to any port", "remove tunnel",
    }  # fmt: skip


@pytest.mark.system
def test_a_hundred_random_instants(memory_path: Path) -> None:
    pairs = run_lives("random", str(memory_path), "100", "7")
    for pair in pairs:
        check(pair)
    assert sum(pair["killed"] for pair in pairs) >= 50
