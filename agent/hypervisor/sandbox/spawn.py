"""Starts one of the sandbox's own programs as a process that outlives the agent.

`os.posix_spawn` instead of subprocess: no object must be kept, and nothing runs between fork and exec.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from ...environment import tool_environment

_PACKAGE = __name__.rpartition(".")[0]


def program(module: str, function: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line for a function of a module here: the bare interpreter with our top folder on its path."""
    top = sys.modules[__name__.partition(".")[0]].__file__
    folder = str(Path(top or "").absolute().parent.parent)
    code = f"import sys; sys.path.append({folder!r}); from {_PACKAGE}.{module} import {function}; {function}()"
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def start(command: list[str], *, output: int, errors: int, given: int | None = None) -> int:
    """Start it in a session of its own and return the pid. `given` becomes descriptor 3; standard input is empty."""
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    if given is not None:
        actions.append((os.POSIX_SPAWN_DUP2, given, 3))
    return os.posix_spawn(
        command[0],
        command,
        tool_environment(),
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},  # what is ignored would be inherited
    )


async def finish(pid: int) -> int:
    """Wait for the end of a process that we started, reap it and return its exit code; 255 if another reaped it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 255
    try:
        await trio.lowlevel.wait_readable(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])  # noqa: ASYNC222 - does not wait
    except ChildProcessError:
        return 255
    finally:
        os.close(pidfd)


def ended(pid: int) -> bool:
    """Reap a process that we started and return whether it has ended; False when it is no longer our child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
