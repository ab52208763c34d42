"""Maps libvirt's errors to ours: the one module that knows its codes and the texts of QEMU's failures.

Our messages hold no path and no text of libvirt, because a peer may read them; libvirt's own text goes to the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt
import structlog

from ....protocols.errors import (
    DeadlineExceeded,
    HypervisorDown,
    ImageDamaged,
    InsufficientResources,
    TwinshareError,
    Unsupported,
    VmExists,
    VmNotFound,
    WrongState,
)

log = structlog.get_logger(__name__)

_LOST = "the connection to libvirt is lost; the agent restores it by itself"
_UNREADABLE = "a disk of the VM or the image below it is missing or cannot be read"
# QEMU's last output follows the colon. Without any it was killed; killed by SIGTERM it prints that alone.
_QEMU_ENDED = (
    r"(exited while connecting to|unexpectedly closed the) monitor(:?\s*$|[\s\S]*terminating on signal)"
    r"|(read from|write to|file from( qemu)?) monitor|send monitor command|domain is no longer running"
)
_BY_TEXT: tuple[tuple[str, type[TwinshareError], str], ...] = (
    (r"already exists with uuid|is already defined with uuid", VmExists, "a VM with this name exists already"),
    (r"No space left on device|Disk quota exceeded", InsufficientResources, "this machine's disk is full"),
    (
        r"cannot set up guest memory|Cannot allocate memory|unable to map backing store",
        InsufficientResources,
        "this machine has not enough free memory for the VM",
    ),
    (r'Failed to get .*"?(write|shared|consistent read)"? lock', WrongState, "another process uses the VM's disk"),
    (
        r"Cannot access (storage|backing) file|Could not open '|No such file or directory.*(disk|image|backing)",
        ImageDamaged,
        _UNREADABLE,
    ),
    (
        r"qemu-system-\S+: -blockdev |[Ii]mage is (not in|corrupt)|qcow2: |backing (file|format|chain)",
        ImageDamaged,
        "a disk of the VM or the image below it is damaged",
    ),
    (r"socket is closed|connection (was )?closed|keepalive|Cannot (recv|write) data", HypervisorDown, _LOST),
    (
        r"Failed to connect socket|unable to connect to server",
        HypervisorDown,
        "no libvirt daemon listens there; is it installed and running?",
    ),
    (
        r"KVM is not|kvm.*not (available|supported)|invalid accelerator|does not support virt type",
        Unsupported,
        "this machine cannot run the VM with KVM",
    ),
    # libvirt reports some calls on a stopped domain as unsupported.
    (r"inactive domain", WrongState, "the VM is not running"),
    (_QEMU_ENDED, WrongState, "its QEMU ended meanwhile; look at its state, and try again"),
)
_BY_CODE: dict[int, tuple[type[TwinshareError], str]] = {
    libvirt.VIR_ERR_NO_DOMAIN: (VmNotFound, "the VM does not exist"),
    libvirt.VIR_ERR_DOM_EXIST: (VmExists, "a VM with this name exists already"),
    libvirt.VIR_ERR_OPERATION_INVALID: (WrongState, "the VM is not in a state for this"),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (
        DeadlineExceeded,
        "the VM's QEMU does not answer; a forced stop works all the same",
    ),
    libvirt.VIR_ERR_NO_MEMORY: (InsufficientResources, "this machine has not enough free memory for the VM"),
    libvirt.VIR_ERR_NO_SUPPORT: (Unsupported, "this hypervisor cannot do that"),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: (Unsupported, "this hypervisor cannot run a VM of this kind"),
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: (Unsupported, "this hypervisor cannot do that"),
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: (Unsupported, "this hypervisor cannot do that"),
    libvirt.VIR_ERR_NO_CONNECT: (HypervisorDown, "libvirt cannot be reached"),
    libvirt.VIR_ERR_INVALID_CONN: (HypervisorDown, _LOST),
    libvirt.VIR_ERR_RPC: (HypervisorDown, _LOST),
    libvirt.VIR_ERR_AUTH_FAILED: (HypervisorDown, "libvirt refuses this user: add it to the group `libvirt`"),
}


def qemu_ended(error: libvirt.libvirtError) -> bool:
    """Return whether the VM's QEMU ended during the call without a reason of its own: it was killed."""
    return re.search(_QEMU_ENDED, str(error)) is not None


def map_error(error: libvirt.libvirtError, doing: str) -> TwinshareError:
    """Return our error for libvirt's. The text is more exact than the code, so it is matched first."""
    code, text = error.get_error_code(), str(error)
    level = logging.DEBUG if code == libvirt.VIR_ERR_NO_DOMAIN else logging.INFO
    log.log(level, "libvirt refused", doing=doing, code=code, domain=error.get_error_domain(), text=text)
    for pattern, kind, sentence in _BY_TEXT:
        if re.search(pattern, text):
            return kind(f"cannot {doing}: {sentence}")
    if code in _BY_CODE:
        kind, sentence = _BY_CODE[code]
        return kind(f"cannot {doing}: {sentence}")
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return HypervisorDown(f"cannot {doing}: {_LOST}")
    if error.get_error_domain() == libvirt.VIR_FROM_STORAGE:
        return ImageDamaged(f"cannot {doing}: {_UNREADABLE}")
    return TwinshareError(f"cannot {doing}: libvirt failed with code {code}; the agent's log has its text")


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Map the body's libvirt errors; `doing` completes the sentence "cannot …"."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise map_error(error, doing) from error


@contextmanager
def ignoring(*codes: int) -> Iterator[None]:
    """Ignore these error codes: the wanted state is reached already, or the driver lacks the call."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
