"""The agent's process environment does not depend on its starter."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from twinshare.agent.environment import make_directory, tool_environment

REPORT = """
import json, os, resource, signal, sys
from twinshare.agent import environment
before = environment.limit_problems()
if sys.argv[1] == "reset":
    environment.reset_environment()
mask = os.umask(0)
print(json.dumps({
    "umask": mask, "problems": before, "path": os.environ["PATH"],
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "child": int(signal.getsignal(signal.SIGCHLD)),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "size": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
}))
"""
HARD_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def started_badly(*arguments: str, hard: bool = False) -> dict[str, Any]:
    """What a process reports that was started with a foreign umask, signals, limits and PATH."""

    def spoil() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, HARD_FILES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20 if hard else resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-c", REPORT, *arguments],
        env={"PATH": "/opt/mine"}, umask=0, preexec_fn=spoil, capture_output=True, check=True, timeout=20,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_umask_signals_limits_and_path_are_set() -> None:
    seen = started_badly("reset")
    assert seen["umask"] == 0o077
    assert seen["blocked"] == []
    assert seen["child"] == signal.SIG_DFL
    assert (seen["files"], seen["size"], seen["core"]) == (HARD_FILES, resource.RLIM_INFINITY, 0)
    assert seen["path"].split(":")[0] == "/opt/mine"
    assert "/usr/sbin" in seen["path"].split(":")


def test_a_hard_limit_is_named() -> None:
    (problem,) = started_badly("", hard=True)["problems"]
    assert "file size (ulimit -f)" in problem
    assert str(1 << 20) in problem
    assert started_badly("")["problems"] == []


def test_a_tool_gets_nothing_else_of_our_environment() -> None:
    assert set(tool_environment("/x")) == {"PATH", "LC_ALL", "HOME"}


def test_a_new_directory_has_its_mode_and_an_old_one_keeps_it(tmp_path: Path) -> None:
    command = "import os, sys; from twinshare.agent.environment import make_directory; os.umask(0o777);"
    new = tmp_path / "new"
    subprocess.run([sys.executable, "-c", f"{command} make_directory(sys.argv[1], 0o751)", new], check=True, timeout=20)
    assert new.stat().st_mode & 0o777 == 0o751
    make_directory(new, 0o700)
    assert new.stat().st_mode & 0o777 == 0o751
