"""Fixes a running domain's disk at one instant: libvirt's backup in pull mode, with the guest's file systems settled.

What the guest overwrites from then on, QEMU first copies into a scratch file; readers see the old data. Blocking calls,
for a thread in a lane.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

import libvirt
import structlog

from .errors import passing_over
from .verbs import AGENT_PATIENCE, running_state

log = structlog.get_logger(__name__)

DISK = "vda"
_THAWS = 2
_END_PATIENCE = 5.0
_LOOK_EVERY = 0.01


def begin(domain: libvirt.virDomain, socket: Path, scratch: Path) -> None:
    """Serve the disk on `socket`; an older view, which a killed agent left, ends. Raises: WrongState."""
    end(domain)
    listening = running_state(domain) == libvirt.VIR_DOMAIN_RUNNING and _agent_listens(domain)
    if listening:
        _settle(domain)
    try:
        domain.backupBegin(_backup(socket, scratch), None, 0)  # type: ignore[arg-type]  # None is "no checkpoint"
    finally:
        if listening:
            _release(domain)


def end(domain: libvirt.virDomain) -> None:
    """No error when there is no view, or the domain is off.

    libvirt answers an abort before the job has ended; its files go, and the next view can begin, only after that.
    """
    with passing_over(libvirt.VIR_ERR_NO_DOMAIN_BACKUP, libvirt.VIR_ERR_OPERATION_INVALID):
        domain.backupGetXMLDesc(0)
        domain.abortJob()
        ends = time.monotonic() + _END_PATIENCE
        while time.monotonic() < ends:
            domain.backupGetXMLDesc(0)
            time.sleep(_LOOK_EVERY)


def _backup(socket: Path, scratch: Path) -> str:
    backup = ET.Element("domainbackup", {"mode": "pull"})
    ET.SubElement(backup, "server", {"transport": "unix", "socket": str(socket)})
    disk = ET.SubElement(ET.SubElement(backup, "disks"), "disk", {"name": DISK, "backup": "yes", "type": "file"})
    ET.SubElement(disk, "scratch", {"file": str(scratch)})
    return ET.tostring(backup, encoding="unicode")


def _agent_listens(domain: libvirt.virDomain) -> bool:
    return ET.fromstring(domain.XMLDesc(0)).find("devices/channel/target[@state='connected']") is not None  # noqa: S314 - from our own libvirt


def _settle(domain: libvirt.virDomain) -> None:
    """An agent that knows nothing of this, or does not answer, costs nothing but the wait."""
    with suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(AGENT_PATIENCE, 0)
        domain.fsFreeze()


def _release(domain: libvirt.virDomain) -> None:
    """Also when the freeze seems to have failed: its answer may have been late. A guest is never left frozen."""
    for _ in range(_THAWS):
        try:
            domain.fsThaw()
        except libvirt.libvirtError as error:
            failure = str(error)
        else:
            return
    log.info("the guest agent did not thaw the file systems", vm=domain.UUIDString(), text=failure)
