"""Exports a running domain's disk as of one instant: libvirt's pull-mode backup, with the file systems frozen.

QEMU copies what the guest overwrites from then on into a scratch file first; readers see the old data. Blocking calls,
for a thread in a lane.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

import libvirt
import structlog

from ..domain_xml import has_agent
from .domain_ops import AGENT_TIMEOUT, running_state
from .errors import ignoring

log = structlog.get_logger(__name__)

DISK = "vda"
_THAW_ATTEMPTS = 2
_END_TIMEOUT = 5.0
_POLL_INTERVAL = 0.01


def begin(domain: libvirt.virDomain, socket: Path, scratch: Path) -> None:
    """Export the disk on `socket`; an export that a killed agent left is ended. Raises: WrongState."""
    end(domain)
    frozen = running_state(domain) == libvirt.VIR_DOMAIN_RUNNING and has_agent(domain.XMLDesc(0))
    if frozen:
        _freeze(domain)
    try:
        domain.backupBegin(_backup(socket, scratch), None, 0)  # type: ignore[arg-type]  # None is "no checkpoint"
    finally:
        if frozen:
            _thaw(domain)


def end(domain: libvirt.virDomain) -> None:
    """End the export; no error when there is none or the domain is off.

    libvirt answers an abort before the job has ended; only then are its files gone and can the next export begin.
    """
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
        domain.backupGetXMLDesc(0)
        domain.abortJob()
        ends = time.monotonic() + _END_TIMEOUT
        while time.monotonic() < ends:
            domain.backupGetXMLDesc(0)
            time.sleep(_POLL_INTERVAL)


def _backup(socket: Path, scratch: Path) -> str:
    backup = ET.Element("domainbackup", {"mode": "pull"})
    ET.SubElement(backup, "server", {"transport": "unix", "socket": str(socket)})
    disk = ET.SubElement(ET.SubElement(backup, "disks"), "disk", {"name": DISK, "backup": "yes", "type": "file"})
    ET.SubElement(disk, "scratch", {"file": str(scratch)})
    return ET.tostring(backup, encoding="unicode")


def _freeze(domain: libvirt.virDomain) -> None:
    """Freeze the guest's file systems, best effort: an agent that cannot or does not answer costs the wait alone."""
    with suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        domain.fsFreeze()


def _thaw(domain: libvirt.virDomain) -> None:
    """Thaw, also when the freeze failed: its answer may have been late, and a guest must not stay frozen."""
    for _ in range(_THAW_ATTEMPTS):
        try:
            domain.fsThaw()
        except libvirt.libvirtError as error:
            failure = str(error)
        else:
            return
    log.info("the guest agent did not thaw the file systems", vm=domain.UUIDString(), text=failure)
