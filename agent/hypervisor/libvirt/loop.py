"""libvirt's event loop: one native thread per process, from the first connection until the process ends.

A loop inside trio works too, but every remote call then passes through Python twice: half the calls a second.
"""

from __future__ import annotations

import threading
import time

import libvirt
import structlog

log = structlog.get_logger(__name__)
_lock = threading.Lock()
_running = False


def run_event_loop() -> None:
    """Must precede the first `libvirt.open`; does nothing the second time."""
    global _running
    with _lock:
        if not _running:
            _running = True
            libvirt.registerErrorHandler(lambda *_: None, None)  # errors come as exceptions, not on stderr
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_run, name="libvirt-events", daemon=True).start()


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError as error:
            log.warning("libvirt's event loop stumbled", text=str(error))
            time.sleep(0.1)
