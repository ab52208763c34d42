"""The states of a VM: what the hypervisor's states mean, and how an operation refuses the ones it does not accept."""

from __future__ import annotations

from ...protocols.errors import WrongState
from ...protocols.vm import VmStatus
from ..hypervisor.port import Domain, DomainState

STATUS_OF: dict[DomainState, VmStatus] = {
    DomainState.RUNNING: VmStatus.RUNNING,
    DomainState.PAUSED: VmStatus.PAUSED,
    DomainState.SHUTOFF: VmStatus.STOPPED,
    DomainState.SUSPENDED: VmStatus.SUSPENDED,
    DomainState.CRASHED: VmStatus.CRASHED,
}

ANY = frozenset(DomainState)
ACTIVE = frozenset({DomainState.RUNNING, DomainState.PAUSED})
"""The states of a domain that has a QEMU process."""


def require_state(domain: Domain, allowed: frozenset[DomainState], remedy: str) -> None:
    """Raises: WrongState unless the domain is in one of the states; the error says what would help."""
    if domain.state not in allowed:
        status = STATUS_OF[domain.state]
        raise WrongState(f"VM '{domain.name}' is {status}; {remedy}", vm=domain.name, status=str(status))


def require_active(domain: Domain) -> None:
    """Raises: WrongState unless the domain has a QEMU process."""
    require_state(domain, ACTIVE, "start it first")
