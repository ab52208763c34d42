"""Become the unprivileged user, outside of its walls, and then `pasta`."""

from __future__ import annotations

import os
import signal
import sys

from . import walls

_MOST = 1 << 16  # file descriptors; none but the standard three are for this process


def main() -> None:
    """Started by root as `... outlet.main() UID GID SCRATCH COMMAND...`.

    SCRATCH is a folder to mount a device in; it is empty where the machine's own will do.
    """
    os.closerange(3, _MOST)
    uid, gid, scratch, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    if scratch:
        walls.private_tun(scratch)
    walls.become(uid, gid)
    walls.drop_power()
    walls.refuse_new_privileges()
    os.chdir("/")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta refuses to start where it is ignored, as Python has it
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted
