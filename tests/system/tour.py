"""Walks the README's tours word for word: `python3 tests/system/tour.py [one|two]` in a checkout.

The standard library alone, since a fresh machine has no more. The first block is one terminal, the rest another;
where the tour says to stop the node and start it again, so does this. Prints what it saw, and fails at what is not so.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

INSTALLS = 1200.0  # seconds for the first start: packages of the system and of Python
STARTS = 30.0
WALKS = 600.0
STOPS = 30.0
BETWEEN = "--- next block ---"
README = Path(__file__).parents[2] / "README.md"
TWINSHARE = ".venv/bin/twinshare"


def blocks(title: str) -> list[str]:
    """The shell blocks of one of the README's sections in order."""
    sections = re.split(r"^## ", README.read_text(), flags=re.MULTILINE)
    [section] = [part for part in sections if part.startswith(f"{title}\n")]
    return re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)


class Terminal:
    """A terminal in which nodes run in the foreground; `asks` succeeds once they are ready."""

    def __init__(self, command: str, ready_within: float, asks: str = f"{TWINSHARE} status") -> None:
        self._asks = asks  # a shell: on a fresh machine the command is not there at once
        started = time.monotonic()
        self._bash = subprocess.Popen(["bash", "-c", command], start_new_session=True)
        pause = threading.Event()
        while not self._answers():
            if self._bash.poll() is not None:
                sys.exit(f"tour: the node ended with {self._bash.returncode}")
            if time.monotonic() - started > ready_within:
                self.interrupt()
                sys.exit(f"tour: the node was not ready within {ready_within:g} s")
            pause.wait(0.1)
        self.took = time.monotonic() - started

    def _answers(self) -> bool:
        return subprocess.run(["bash", "-c", self._asks], capture_output=True, check=False).returncode == 0

    def interrupt(self) -> int:
        """Press Ctrl-C, which goes to all that runs in the terminal. Returns the exit code."""
        if self._bash.poll() is None:
            os.killpg(self._bash.pid, signal.SIGINT)
        try:
            return self._bash.wait(STOPS)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            sys.exit(f"tour: the node did not end within {STOPS:g} s of Ctrl-C")


def walk(commands: list[str]) -> list[str]:
    """Type the blocks into one shell, which ends at the first command that fails. Returns what each block printed."""
    script = f"\necho '{BETWEEN}'\n".join(commands)
    shell = subprocess.run(
        ["bash", "-exo", "pipefail", "-c", script], stdout=subprocess.PIPE, text=True, timeout=WALKS, check=False
    )
    print(shell.stdout, flush=True)
    if shell.returncode != 0:
        sys.exit(f"tour: a command of the README failed with {shell.returncode}")
    return shell.stdout.split(f"{BETWEEN}\n")


def expect(what: str, seen: object, wanted: object) -> None:
    print(f"tour: {what}: {seen}", flush=True)
    if seen != wanted:
        sys.exit(f"tour: {what} should have been {wanted}")


def one_node() -> None:
    first, path, ask, inside, address, also, last = blocks("Five-minute tour")
    terminal = Terminal(first, INSTALLS)
    try:
        print(f"tour: the first start was ready after {terminal.took:.1f} s", flush=True)
        _, asked, within, addressed, _ = walk([path, ask, inside, address, also])
        expect("the guest's web server answers", asked.splitlines()[-1], "demo")
        expect("a command in the guest knows its kernel", within.split()[:2], ["Linux", "demo"])
        expect("ssh reaches the guest", within.splitlines()[-1], "demo")
        expect("the address of the guest answers", addressed.splitlines()[-1], "demo")
        expect("the node, stopped by Ctrl-C, ends with", terminal.interrupt(), 0)
        terminal = Terminal(first, STARTS)
        print(f"tour: the second start was ready after {terminal.took:.1f} s", flush=True)
        curl = ask.splitlines()[-1]
        again = walk([curl])[0].splitlines()[-1]
        expect("the guest, which ran on, answers", again, "demo")
        walk([path.splitlines()[0] + "\n" + last])
    finally:
        # There is nothing left to remove after a tour that came to its end.
        subprocess.run([TWINSHARE, "vm", "rm", "demo", "--force"], capture_output=True, check=False)
        code = terminal.interrupt()
    expect("the node, stopped again, ends with", code, 0)


def two_nodes() -> None:
    first, ask, last = blocks("Two nodes on one machine")
    node = f"{ask.splitlines()[0]}; "
    terminal = Terminal(first, STARTS, asks=f"{node}twinshare peer ls | grep -q 'node-2.*online'")
    try:
        print(f"tour: two nodes were ready after {terminal.took:.1f} s", flush=True)
        asked, listed = walk([ask, last])
        expect("the far guest's web server answers", asked.splitlines()[-1], "far")
        expect("the fleet's list names its node", "node-2" in listed, True)
    finally:
        remove = f"{node}twinshare vm rm far --force --on node-2"
        subprocess.run(["bash", "-c", remove], capture_output=True, check=False)
        code = terminal.interrupt()
    expect("the nodes, stopped by Ctrl-C, end with", code, 0)


TOURS = {"one": one_node, "two": two_nodes}

if __name__ == "__main__":
    for name in sys.argv[1:] or TOURS:
        TOURS[name]()
