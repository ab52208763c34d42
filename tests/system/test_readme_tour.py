"""The README's tours, word for word, on a network of their own: their ports are taken by nobody and take nobody's.

The same on an empty machine is asked for with TWINSHARE_FRESH_ROOT=1; it downloads some hundred megabytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rules.tree import TOP
from tests.system.tour import blocks

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.getuid() != 0, reason="needs root for a network namespace")]


@contextmanager
def internet_namespace(name: str, scratch: Path) -> Iterator[str]:
    """A network namespace with the outside world behind it, and none of this machine's ports."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    pid = scratch / "pasta.pid"
    none = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
    way_out = ["--quiet", "--config-net", "--runas", "0", "--netns-only", "--pid", str(pid), "--netns"]
    try:
        subprocess.run(["pasta", *none, *way_out, f"/run/netns/{name}"], check=True, timeout=30, capture_output=True)
        yield name
    finally:
        if pid.exists():
            os.kill(int(pid.read_text()), 15)
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_the_tours_are_found() -> None:
    first, *rest = blocks("Five-minute tour")
    assert first == "scripts/run\n"
    assert len(rest) == 6
    assert len(blocks("Two nodes on one machine")) == 3


def walk(tour: str, place: Path, scratch: Path) -> None:
    """The nodes' files lie in the test's directory; all else is as a reader would have it."""
    environment = os.environ | {"TWINSHARE_DATA_DIR": str(scratch / "node")}
    with internet_namespace(f"ts-tour-{os.getpid()}", scratch) as netns:
        command = ["ip", "netns", "exec", netns, sys.executable, str(TOP / "tests/system/tour.py"), tour]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    places = [link for link in Path("/run/twinshare").glob("*") if link.is_symlink()]
    assert not [link for link in places if link.readlink().is_relative_to(scratch)], "the sandbox is still there"


@pytest.mark.skipif(not shutil.which("pasta"), reason="needs passt (pasta)")
def test_the_tour(tmp_path: Path) -> None:
    walk("one", TOP, tmp_path)


@pytest.mark.skipif(not shutil.which("pasta"), reason="needs passt (pasta)")
def test_the_tour_of_two_nodes(tmp_path: Path) -> None:
    """Where its `.venv` is, too: the lab's folder is made there."""
    (tmp_path / ".venv").symlink_to(TOP / ".venv")
    walk("two", tmp_path, tmp_path)


@pytest.mark.skipif(os.environ.get("TWINSHARE_FRESH_ROOT") != "1", reason="asked for with TWINSHARE_FRESH_ROOT=1")
def test_the_tour_on_an_empty_machine() -> None:
    done = subprocess.run(["scripts/fresh-root"], cwd=TOP, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
