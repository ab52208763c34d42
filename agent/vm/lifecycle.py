"""The states of a VM, as tables: what the hypervisor's states mean, and what each operation may find.

Everything that decides about a VM's state is in this file.
"""

from __future__ import annotations

from ...protocols.errors import WrongState
from ...protocols.vm import VmStatus
from ..hypervisor.port import DomainState

STATUS_OF: dict[DomainState, VmStatus] = {
    DomainState.RUNNING: VmStatus.RUNNING,
    DomainState.PAUSED: VmStatus.PAUSED,
    DomainState.SHUTOFF: VmStatus.STOPPED,
    DomainState.SUSPENDED: VmStatus.SUSPENDED,
    DomainState.CRASHED: VmStatus.CRASHED,
}

# What a VM shows while an operation of a kind is at work on it.
STATUS_WHILE: dict[str, VmStatus] = {
    "create_vm": VmStatus.CREATING,
    "start_vm": VmStatus.STARTING,
    "stop_vm": VmStatus.STOPPING,
    "restart_vm": VmStatus.STOPPING,
    "delete_vm": VmStatus.DELETING,
}

# A domain that holds a QEMU process.
ACTIVE = frozenset({DomainState.RUNNING, DomainState.PAUSED})

# Which states an operation accepts; in the ones it does not, the cure that the error names.
_ACCEPTS: dict[str, tuple[frozenset[DomainState], str]] = {
    "pause_vm": (ACTIVE, "start it first"),
    "resume_vm": (ACTIVE, "start it instead"),
    "vm_stats": (ACTIVE, "start it first"),
    "open_console": (ACTIVE, "start it first"),
    "vm_screenshot": (ACTIVE, "start it first"),
    "capture_image": (frozenset(DomainState) - {DomainState.SUSPENDED}, "its disk is not whole; start it first"),
    "delete_vm": (frozenset(DomainState) - ACTIVE, "stop it first, or ask with force"),
}


def require_state(kind: str, name: str, state: DomainState) -> None:
    """Raises: WrongState, saying what would help."""
    accepted, cure = _ACCEPTS[kind]
    if state not in accepted:
        status = STATUS_OF[state]
        raise WrongState(f"VM '{name}' is {status}; {cure}", vm=name, status=str(status))
