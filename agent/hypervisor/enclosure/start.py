"""Start one of the programs of `inside` as a process that outlives the agent.

`os.posix_spawn` instead of subprocess: there is no object that must be kept, and nothing runs between fork and exec.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ROOM = __name__.rpartition(".enclosure.")[0]


def program(name: str, arguments: Sequence[str]) -> list[str]:
    """The command line for `inside/<name>.py`: the bare interpreter with our top folder added to its path."""
    top = sys.modules[__name__.partition(".")[0]].__file__
    folder = str(Path(top or "").absolute().parent.parent)
    code = f"import sys; sys.path.append({folder!r}); from {_ROOM}.inside.{name} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code, *arguments]


def start(command: list[str], *, output: int, errors: int, given: int | None = None) -> int:
    """The pid. `given` becomes descriptor 3; standard input is empty; the process has its own session."""
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, errors, 2),
    ]
    if given is not None:
        actions.append((os.POSIX_SPAWN_DUP2, given, 3))
    environment = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE],  # Python ignores it, and pasta refuses to start where it is ignored
    )


async def finish(pid: int) -> int:
    """Wait until a process that we started ends, and reap it; its exit code, 255 when another has reaped it."""
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
    """Whether a process that we started has ended; reaps it. One that is not our child any more counts as not ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
