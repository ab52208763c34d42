"""Reaps dead QEMU processes: libvirt's `destroy` waits until the pid vanishes, for seconds where PID 1 is slow to reap.

QEMU daemonizes, so it is nobody's child. The agent becomes the parent of such orphans (a "subreaper") and on SIGCHLD
reaps those that are QEMU and dead. Other children belong to whoever started them: never `waitpid(-1)`.
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
_previous: signal.Handlers | object = signal.SIG_DFL


@contextmanager
def reap_guests() -> Iterator[None]:
    """Reap dead QEMU processes while any body runs; does nothing outside the main thread."""
    global _holders, _previous
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _holders == 0:
        _set_subreaper(True)
        _previous = signal.signal(signal.SIGCHLD, _on_child)
    _holders += 1
    _reap()
    try:
        yield
    finally:
        _holders -= 1
        if _holders == 0:
            signal.signal(signal.SIGCHLD, _previous or signal.SIG_DFL)  # type: ignore[arg-type]  # as it was
            _set_subreaper(False)


def _set_subreaper(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def _on_child(number: int, frame: FrameType | None) -> None:
    _reap()
    if callable(_previous):
        _previous(number, frame)


def _reap() -> None:
    me = os.getpid()
    with suppress(OSError):  # no such file: the kernel does not list children, and PID 1 must reap
        for word in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            if _is_dead_qemu(word):
                with suppress(ChildProcessError):
                    os.waitpid(int(word), os.WNOHANG)


def _is_dead_qemu(pid: str) -> bool:
    with suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(") ")
        return name.startswith("qemu-system") and rest.startswith("Z")
    return False
