"""Bury dead guests: libvirt's `destroy` waits until the pid vanishes; seconds, where process 1 is slow to reap.

QEMU daemonizes, so it is nobody's child. We become the parent of such orphans (a "subreaper") and, told by SIGCHLD,
reap those that are QEMU and dead. Other children belong to those who started them: never `waitpid(-1)`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
_holders = 0
_former: signal.Handlers | object = signal.SIG_DFL


@contextmanager
def burying_guests() -> Iterator[None]:
    """While anybody is inside, dead QEMU processes that fell to us are reaped; does nothing outside the main thread."""
    global _holders, _former
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _holders == 0:
        _adopt_orphans(True)
        _former = signal.signal(signal.SIGCHLD, _on_child)
    _holders += 1
    _bury()
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0:
            signal.signal(signal.SIGCHLD, _former or signal.SIG_DFL)  # type: ignore[arg-type]  # what it gave, it takes
            _adopt_orphans(False)


def _adopt_orphans(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _on_child(number: int, frame: FrameType | None) -> None:
    _bury()
    if callable(_former):
        _former(number, frame)


def _bury() -> None:
    me = os.getpid()
    with suppress(OSError):  # no such file: the kernel does not list children; then process 1 must do
        for word in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            if _is_dead_guest(word):
                with suppress(ChildProcessError):
                    os.waitpid(int(word), os.WNOHANG)


def _is_dead_guest(pid: str) -> bool:
    with suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
        return name.startswith("qemu-system") and rest.startswith("Z")
    return False
