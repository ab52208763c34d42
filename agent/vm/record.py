"""What the agent keeps about a VM inside its libvirt domain, and how a domain becomes a `Vm`.

libvirt is the only database of VMs: what it does not know is JSON in the domain's `<metadata>`.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import datetime

import msgspec

from ...protocols.bounded.json import check_json
from ...protocols.vm import ForwardSpec, Vm, VmSettings, VmStatus, settings_of
from ..hypervisor.port import Domain
from .expiry import Expiry, shown_end
from .lifecycle import ACTIVE, STATUS_OF

# The namespace of VM ids: an idempotency key always gives the same domain UUID.
_NAMESPACE = uuid.UUID("b9a3f2d4-5f5e-5c1a-9d0b-7a3f6c2e8d11")


class VmMetadata(VmSettings, frozen=True, kw_only=True, omit_defaults=True):
    """`forwards` are kept with the host port that was chosen; `disk_size` in GiB."""

    image: str
    digest: str
    disk_size: int
    network: str
    owner: str
    created_at: datetime
    key: str
    forwards: list[ForwardSpec] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    expiry: Expiry | None = None
    firmware: str = "bios"

    def to_text(self) -> str:
        return msgspec.json.encode(self).decode()


@dataclass(frozen=True, slots=True)
class Record:
    """One of our domains as it was seen at `observed_at`."""

    domain: Domain
    metadata: VmMetadata
    observed_at: datetime

    @property
    def active(self) -> bool:
        return self.domain.state in ACTIVE


def vm_id(key: str) -> str:
    """The domain UUID that the operation with this idempotency key makes."""
    return str(uuid.uuid5(_NAMESPACE, key))


def vm_mac(id: str) -> str:
    """The MAC address of a VM whose creator gave none: stable, and in QEMU's range."""
    digest = hashlib.sha256(id.encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def read_record(domain: Domain, observed_at: datetime) -> Record | None:
    """None for a domain that is not ours, or whose metadata somebody has damaged: whoever uses libvirt can write it."""
    if domain.metadata is None:
        return None
    try:
        check_json(domain.metadata.encode())
        return Record(domain, msgspec.json.decode(domain.metadata, type=VmMetadata), observed_at)
    except (msgspec.MsgspecError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Reach:
    """How a VM is reached: `ip` as in `Vm`, on the open `ports`."""

    ip: str | None = None
    guest_ip: str | None = None
    ports: tuple[int, ...] = ()


NO_REACH = Reach()


def view(
    record: Record, node: str, reach: Reach, *, at_work: VmStatus | None, uptime: int | None, vnc_port: int | None
) -> Vm:
    """The VM as callers see it. `at_work` is what an operation is doing to it."""
    domain, metadata = record.domain, record.metadata
    return Vm(
        id=domain.id,
        name=domain.name,
        status=at_work or STATUS_OF[domain.state],
        cpu_cores=domain.cpu_cores,
        memory=domain.memory,
        disk_size=metadata.disk_size,
        hypervisor=domain.accelerator,
        network=metadata.network,
        vnc_port=vnc_port if record.active else None,
        created_at=metadata.created_at,
        uptime=uptime,
        expires_at=shown_end(metadata.expiry, metadata.ttl),
        ip=reach.ip,
        guest_ip=reach.guest_ip,
        mac=domain.mac,
        ports=list(reach.ports),
        image=metadata.image,
        owner=metadata.owner,
        firmware=metadata.firmware,
        node=node,
        observed_at=record.observed_at,
        reason=domain.reason,
        warnings=metadata.warnings,
        **settings_of(metadata),
    )
