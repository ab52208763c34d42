"""Operations on one domain: blocking, repeatable calls, for a thread in the lane of the caller's choice."""

from __future__ import annotations

import json
import time

import libvirt
import libvirt_qemu

from ....protocols.errors import GuestRefused, Unsupported, WrongState
from ..domain_xml import METADATA_PREFIX, METADATA_URI, has_agent, metadata_element, parse_disk
from .errors import ignoring, qemu_ended

AGENT_TIMEOUT = 3  # seconds for a guest agent's answer
_UNDEFINE_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
)
_UNDEFINE_MINIMAL = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA


def start(domain: libvirt.virDomain) -> None:
    """Start it; once more when QEMU was killed meanwhile.

    libvirt 9.0 does that itself to a VM that starts right after it ended: a late notice of the former QEMU's end is
    taken for the new one's.
    """
    try:
        _create(domain)
    except libvirt.libvirtError as error:
        if not qemu_ended(error):
            raise
        _create(domain)


def _create(domain: libvirt.virDomain) -> None:
    try:
        domain.create()
    except libvirt.libvirtError:
        if not domain.isActive():
            raise


def shutdown(domain: libvirt.virDomain) -> None:
    """Ask the guest to power off: without a flag libvirt asks the guest agent if there is one, and then by ACPI."""
    if domain.isActive():
        with ignoring(libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
            domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        with ignoring(libvirt.VIR_ERR_OPERATION_INVALID):
            domain.shutdownFlags(0)


def destroy(domain: libvirt.virDomain) -> None:
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
        domain.destroy()


def undefine(domain: libvirt.virDomain) -> None:
    if domain.isActive():
        raise WrongState("the VM runs: stop it before it is deleted")
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
        try:
            domain.undefineFlags(_UNDEFINE_ALL)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                raise
            domain.undefineFlags(_UNDEFINE_MINIMAL)  # a driver that knows neither checkpoints nor NVRAM


def pause(domain: libvirt.virDomain) -> None:
    if running_state(domain) != libvirt.VIR_DOMAIN_PAUSED:
        domain.suspend()


def resume(domain: libvirt.virDomain) -> bool:
    """Return whether it was paused or suspended."""
    state = running_state(domain)
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    elif state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup(0)
    return state in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED)


def set_guest_time(domain: libvirt.virDomain) -> None:
    """Set the guest's clock to the host's. Raises: WrongState when it is not running, Unsupported without an agent."""
    if running_state(domain) != libvirt.VIR_DOMAIN_RUNNING or not has_agent(domain.XMLDesc(0)):
        raise Unsupported("no guest agent answers in the VM, by which its clock could be set")
    with ignoring(libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    now = {"seconds": seconds, "nseconds": nanoseconds}
    domain.setTime(now, 0)  # type: ignore[arg-type]  # the binding's types say int, and it takes this


def ask_guest_agent(domain: libvirt.virDomain, *, request: str) -> object:
    """Send one command in JSON. Raises: Unsupported without an agent, GuestRefused what it refuses."""
    if running_state(domain) != libvirt.VIR_DOMAIN_RUNNING or not has_agent(domain.XMLDesc(0)):
        raise Unsupported("no guest agent answers in the VM")
    try:
        answer = libvirt_qemu.qemuAgentCommand(domain, request, AGENT_TIMEOUT, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            raise Unsupported("no guest agent answers in the VM") from None
        if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and "QEMU agent command" in str(error):
            raise GuestRefused("the guest agent refuses the command") from None
        raise
    try:
        found: object = json.loads(answer)["return"]
    except (ValueError, TypeError, KeyError):
        raise GuestRefused("the guest agent's answer is malformed") from None
    return found


def read_disk_path(domain: libvirt.virDomain) -> str:
    """Return the file of the first disk, of the running domain or else of the one to be started."""
    path = parse_disk(domain.XMLDesc(0))
    if path is None:
        raise Unsupported("the VM's first disk is no file")
    return path


def set_metadata(domain: libvirt.virDomain, metadata: str) -> None:
    where = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else 0
    if domain.isActive():
        where |= libvirt.VIR_DOMAIN_AFFECT_LIVE
    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    domain.setMetadata(kind, metadata_element(metadata), METADATA_PREFIX, METADATA_URI, where)


def running_state(domain: libvirt.virDomain) -> int:
    """Return libvirt's state of a running domain. Raises: WrongState when it is off."""
    if not domain.isActive():
        raise WrongState("the VM is not running")
    return int(domain.state()[0])
