"""The small programs of the sandbox: try namespaces, change its blocked routes, become `pasta`.

Each runs in a process of its own, by the bare interpreter; `spawn.program` makes the command lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from ...environment import close_descriptors
from . import namespaces, routes

_NOBODY = 65534
_GATE = 3


def try_namespaces() -> None:
    """Enter new namespaces and end: exit code 0, or 1 with the kernel's reason on standard output."""
    uid, gid = (os.geteuid(), os.getegid()) if os.geteuid() else (_NOBODY, _NOBODY)
    try:
        namespaces.enter(namespaces.SandboxSpec(uid=uid, gid=gid, hide=("/run",)))
    except OSError as error:
        os.write(1, str(error.strerror).encode())
        sys.exit(1)


def change_blocked_routes() -> None:
    """Arguments: PID and JSON `{"add": [...], "remove": [...]}`, prefixes for the network namespace of PID."""
    changes = json.loads(sys.argv[2])
    namespaces.enter_network(int(sys.argv[1]))
    routes.update_blocked_routes(changes["add"], changes["remove"])


def run_pasta() -> None:
    """Become the unprivileged user, outside of the sandbox, and then `pasta`.

    Arguments: UID GID SCRATCH COMMAND…; descriptor 3 is the read end of a pipe. SCRATCH is a folder to mount a tun
    device in, empty where the host's own will do. One byte in the pipe says that the supervisor will end this process;
    without it, if the agent was killed before, nobody would: then it does not start.
    """
    if not os.read(_GATE, 1):
        return
    close_descriptors(above=_GATE - 1)
    uid, gid, scratch, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    if scratch:
        namespaces.mount_private_tun(scratch)
    if os.geteuid() == 0:
        namespaces.become(uid, gid)
    namespaces.drop_capabilities()
    namespaces.set_no_new_privs()
    os.chdir("/")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta refuses to start where it is ignored, as Python has it
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted
