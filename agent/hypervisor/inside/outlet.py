"""Become the unprivileged user, outside of its walls, and then `pasta`."""

from __future__ import annotations

import os
import signal
import sys

from . import walls

_GATE = 3
_MOST = 1 << 16  # file descriptors


def main() -> None:
    """Started as `... outlet.main() UID GID SCRATCH COMMAND...` with the reading end of a pipe as descriptor 3.

    SCRATCH is a folder to mount a device in; it is empty where the machine's own will do. One byte in the pipe says
    that the keeper knows of this process; if the agent dies before, nobody would ever end it: then it does not begin.
    """
    if not os.read(_GATE, 1):
        return
    os.closerange(_GATE, _MOST)
    uid, gid, scratch, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    if scratch:
        walls.private_tun(scratch)
    if os.geteuid() == 0:
        walls.become(uid, gid)
    walls.drop_power()
    walls.refuse_new_privileges()
    os.chdir("/")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta refuses to start where it is ignored, as Python has it
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted
