#!/usr/bin/env python3
"""Start, stop and look after a node in the background: the guide's `start_rest_api.py`.

Any python3 runs it. The node is `twinshare agent` of this checkout, which scripts/setup makes ready if it is not.
The kernel's lock on the data directory tells whether an agent runs, never a file that a killed one left behind.
Exit codes: 0 done or running, 1 failed, 3 something must be installed, 4 no node runs here.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PYTHON = TOP / ".venv" / "bin" / "python"
READY_WITHIN = 60.0
STOPPED_WITHIN = 20.0
PAUSE = 0.05


def main() -> int:
    options = parse_arguments()
    actions = {"start": start, "stop": stop, "status": status, "restart": restart}
    return actions[options.action](options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start, stop and look after a twinshare node.")
    parser.add_argument("action", choices=["start", "stop", "status", "restart"])
    parser.add_argument("--foreground", action="store_true", help="stay in the terminal until Ctrl-C")
    parser.add_argument("--host", help="the address that REST listens on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="the port that REST listens on (8080)")
    parser.add_argument("--debug", action="store_true", help="log everything")
    parser.add_argument("--log-file", type=Path, help="where the node logs to (agent.log in its data directory)")
    return parser.parse_args()


def start(options: argparse.Namespace) -> int:
    code = make_ready()
    if code:
        return code
    home = data_dir()
    pid = running(home)
    if pid:
        say(f"already running: {describe(home, pid)}")
        return 0
    log_file = (options.log_file or home / "agent.log").resolve()
    if options.foreground:
        return in_foreground(options)
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        # A session of its own: it outlives the terminal.
        agent = subprocess.Popen(
            command(options, home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            env=environment(),
        )
    return await_ready(agent, home, log_file)


def await_ready(agent: subprocess.Popen[bytes], home: Path, log_file: Path) -> int:
    deadline = time.monotonic() + READY_WITHIN
    while agent_file(home).get("pid") != agent.pid:
        if agent.poll() is not None:
            say(f"the node did not start; {log_file} ends with:\n{last_line(log_file)}")
            return agent.returncode or 1
        if time.monotonic() > deadline:
            say(f"the node is not ready after {READY_WITHIN:.0f} s; see {log_file}")
            return 1
        time.sleep(PAUSE)
    say(f"started: {describe(home, agent.pid)}; log: {log_file}")
    return 0


def in_foreground(options: argparse.Namespace) -> int:
    if options.log_file:
        log = os.open(options.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
    words = command(options, data_dir())
    os.execve(words[0], words, environment())  # noqa: S606 - the agent takes this process's place
    return 1


def stop(options: argparse.Namespace) -> int:
    home = data_dir()
    pid = running(home)
    if not pid:
        say("not running")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOPPED_WITHIN
    while running(home) == pid:
        if time.monotonic() > deadline:
            say(f"the node (pid {pid}) still runs after {STOPPED_WITHIN:.0f} s; see its log, or: kill -9 {pid}")
            return 1
        time.sleep(PAUSE)
    say("stopped; its VMs run on")
    return 0


def status(options: argparse.Namespace) -> int:
    home = data_dir()
    pid = running(home)
    if not pid:
        say("not running")
        return 4
    say(f"running: {describe(home, pid)}")
    return 0


def restart(options: argparse.Namespace) -> int:
    return stop(options) or start(options)


def make_ready() -> int:
    """Call scripts/setup when there is no environment yet; its exit code."""
    if PYTHON.exists():
        return 0
    return subprocess.call([str(TOP / "scripts" / "setup")])


def command(options: argparse.Namespace, home: Path) -> list[str]:
    words = [str(PYTHON), "-m", "twinshare", "agent", "--data-dir", str(home)]
    for name in ("host", "port"):
        value = getattr(options, name)
        words += [f"--{name}", str(value)] if value is not None else []
    return words + (["--log-level", "debug"] if options.debug else [])


def environment() -> dict[str, str]:
    """Ours, with this checkout first: `python -m twinshare` works wherever it is started."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")]))}


def data_dir() -> Path:
    """Where the agent keeps its things, by its own rules; without an environment, only a variable can tell."""
    if "TWINSHARE_DATA_DIR" in os.environ or not PYTHON.exists():
        return Path(os.environ.get("TWINSHARE_DATA_DIR", Path.home() / ".local/share/twinshare")).resolve()
    code = "from twinshare.api.cli.node import data_dirs; print(data_dirs()[0])"
    found = subprocess.run([str(PYTHON), "-c", code], check=True, capture_output=True, text=True, env=environment())
    return Path(found.stdout.strip()).resolve()


def running(home: Path) -> int:
    """The agent's pid, 0 without one: an agent holds the lock for as long as it lives, and writes its pid in it."""
    try:
        with (home / "lock").open() as lock:
            pid = int(lock.read().strip() or 0)
            # Only a lock that somebody may hold is tried: trying must not refuse an agent that is just starting.
            if not pid or not Path(f"/proc/{pid}").exists():
                return 0
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return pid
    except FileNotFoundError:
        pass
    except PermissionError:
        say(f"{home} belongs to another user; run this as that user or as root")
        sys.exit(1)
    return 0


def agent_file(home: Path) -> dict[str, object]:
    try:
        return dict(json.loads((home / "agent.json").read_text()))
    except (OSError, ValueError):
        return {}


def describe(home: Path, pid: int) -> str:
    found = agent_file(home)
    return f"{found.get('name', 'a node')} at {found.get('api_url', 'an address that it will tell soon')} (pid {pid})"


def last_line(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "(nothing)")


def say(message: str) -> None:
    print(f"twinshare: {message}")


if __name__ == "__main__":
    sys.exit(main())
