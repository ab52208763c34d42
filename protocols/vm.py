"""What a virtual machine is on the wire. Memory in MiB, disks in GiB, times RFC 3339 UTC, durations in seconds."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .secrets import UNTIL_END
from .user_data import check_user_data

NAME_PATTERN = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_NAME = re.compile(NAME_PATTERN.removeprefix("^").removesuffix("$"))
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
MAC_PATTERN = "^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$"
_MAC = re.compile(MAC_PATTERN)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

VmName = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=63, description="a DNS label in lower case")]
VmRef = Annotated[str, Meta(min_length=1, max_length=255, description="name or id of the VM, or NAME@NODE")]
MAX_FORWARDS = 64
"""Of one VM."""
MAX_TTL = 10 * 365 * 86400
Label = Annotated[str, Meta(max_length=256)]


def check_name(name: str) -> None:
    """Check the pattern again, whole: a pattern that ends in `$` lets a trailing newline pass.

    A name that could be the id of another VM is refused: one reference would mean two VMs.
    Raises: ValueError.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("name must be 1-63 of a-z, 0-9 and '-', and neither begin nor end with '-'")
    if _ID.fullmatch(name):
        raise ValueError("name must not be shaped like an id")


def check_text(text: str, what: str) -> None:
    """Raises: ValueError if `text` holds control characters other than tab and line ends."""
    if _CONTROL.search(text):
        raise ValueError(f"{what} must not contain control characters")


def check_mac(mac: str) -> None:
    """Raises: ValueError if `mac` is neither empty nor the address of one network card.

    libvirt refuses `fe` as the first byte: it keeps those for its own ends of TAP devices (virnetdevtap.c).
    """
    if not mac:
        return
    if not _MAC.fullmatch(mac):
        raise ValueError("mac must be six bytes in lower case, such as 52:54:00:12:34:56")
    first = int(mac[:2], 16)
    if first & 1 or first == 0xFE or mac == "00:00:00:00:00:00":
        raise ValueError("mac must be a unicast address: its first byte even and not fe, and not all zero")


class VmStatus(StrEnum):
    """What a VM is doing.

    `creating` to `migrating` while an operation is at work on it; `migrating` only by later versions. `unknown` is a
    status that only the version of the VM's node knows.
    """

    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    CREATING = "creating"
    STARTING = "starting"
    STOPPING = "stopping"
    DELETING = "deleting"
    MIGRATING = "migrating"
    UNKNOWN = "unknown"


class CloudInit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """First-boot configuration (NoCloud). `user_data` is content in a form of cloud-init, never a path."""

    user_data: Annotated[str, Meta(max_length=65536), UNTIL_END] = ""
    network_config: Annotated[str, Meta(max_length=65536), UNTIL_END] = ""
    ssh_authorized_keys: Annotated[list[Annotated[str, Meta(max_length=16384)]], Meta(max_length=64)] = []
    hostname: Annotated[str, Meta(max_length=253)] = ""

    def __post_init__(self) -> None:
        check_text(self.user_data, "user_data")
        check_text(self.network_config, "network_config")
        if self.user_data:
            check_user_data(self.user_data)
        for key in self.ssh_authorized_keys:
            if "\n" in key or "\r" in key:
                raise ValueError("each of ssh_authorized_keys must be one line")
            check_text(key, "ssh_authorized_keys")
        if self.hostname and not _HOSTNAME.fullmatch(self.hostname):
            raise ValueError("hostname must be letters, digits, '-' and '.'")


class ForwardSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Open `host_port` on the node and carry its connections to `guest_port`. Port 0 lets the node choose."""

    host_port: Annotated[int, Meta(ge=0, le=65535)]
    guest_port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: Annotated[str, Meta(pattern="^(tcp|udp)$")] = "tcp"
    bind: Annotated[str, Meta(max_length=45, pattern="^[0-9a-fA-F.:]+$")] = "127.0.0.1"

    def __post_init__(self) -> None:
        if self.protocol not in {"tcp", "udp"}:
            raise ValueError("protocol must be tcp or udp")
        try:
            ipaddress.ip_address(self.bind)
        except ValueError:
            raise ValueError("bind must be an IP address of this machine") from None


class VmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a VM that are only kept and shown: in its spec, its change, its domain's metadata and the answer.

    A new one needs a default: peers and metadata of an earlier version do not have it. `ttl` is the time for which the
    VM exists, in seconds from its creation or from the change that sets it; None or 0 is without an end.
    """

    autostart: bool = False
    ttl: Annotated[int, Meta(ge=0, le=MAX_TTL)] | None = None
    labels: Annotated[dict[Annotated[str, Meta(min_length=1, max_length=63)], Label], Meta(max_length=64)] = {}


def settings_of(source: VmSettings) -> dict[str, Any]:
    """The settings of a spec, of a domain's metadata or of an answer, by field."""
    return {name: getattr(source, name) for name in VmSettings.__struct_fields__}


def check_settings(source: Any) -> None:
    """Raises: ValueError if the labels of a spec or a change hold control characters."""
    for key, value in (source.labels or {}).items():
        check_text(key, "labels")
        check_text(value, "labels")


def _optional_fields(struct: type[msgspec.Struct]) -> Any:
    """The Struct of a request with the fields of `struct`, each None by default."""
    fields = [(field.name, field.type | None, None) for field in msgspec.structs.fields(struct)]
    return msgspec.defstruct(
        f"Optional{struct.__name__}", fields, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True
    )


class VmSpec(VmSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What somebody asks for. `start` boots the VM as part of the same operation. All `forwards` are added, or none."""

    name: VmName
    image: Annotated[str, Meta(min_length=1, max_length=512)]
    cpu_cores: Annotated[int, Meta(ge=1, le=1024)] = 2
    memory: Annotated[int, Meta(ge=64, le=1 << 30)] = 2048
    disk_size: Annotated[int, Meta(ge=1, le=1 << 20)] = 20
    network: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")] = "default"
    hypervisor: Annotated[str, Meta(pattern="^(kvm|qemu)$")] = "kvm"
    firmware: Annotated[str, Meta(pattern="^(bios|uefi)?$", description="empty: what the image needs")] = ""
    mac: Annotated[str, Meta(pattern=MAC_PATTERN, description="empty: the node chooses one")] = ""
    cloud_init: CloudInit | None = None
    forwards: Annotated[list[ForwardSpec], Meta(max_length=MAX_FORWARDS)] = []
    start: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        for text in (self.image, self.network, self.hypervisor, self.firmware):
            if re.search(r"\s", text):
                raise ValueError("image, network, hypervisor and firmware must not contain spaces or line ends")
            check_text(text, "image, network, hypervisor and firmware")
        check_mac(self.mac)
        ports = [forward.host_port for forward in self.forwards if forward.host_port]
        if len(ports) != len(set(ports)):
            raise ValueError("forwards must not name one host_port twice")
        check_settings(self)


class VmChange(_optional_fields(VmSettings)):  # type: ignore[misc]  # mypy takes its base as Any
    """The settings that are to be changed on a VM that exists; None leaves one as it is."""

    def __post_init__(self) -> None:
        check_settings(self)


class Vm(VmSettings, frozen=True, kw_only=True):
    """One VM as its owner last saw it.

    `id` is the libvirt UUID; `hypervisor` is `kvm` only where KVM truly works; `uptime` is None unless it runs;
    `vnc_port` is a loopback port of the node that runs it; `observed_at` says how old this record is;
    `reason` says why it is in its state, where there is something to say (`disk_full`, `crashed`); `expires_at` is when
    the node deletes it, where it has a `ttl`.

    `ip` is an address at which the VM answers from the machine of the node that is asked, on `ports` at least: the
    guest's own where the network routes it, else one of that machine's loopback. `guest_ip` is what the guest calls
    itself. `mac` is that of its first network card; None where its node is of an earlier version.
    """

    id: str
    name: str
    status: VmStatus
    cpu_cores: int
    memory: int
    disk_size: int
    hypervisor: str
    network: str
    vnc_port: int | None
    created_at: datetime
    uptime: int | None = None
    expires_at: datetime | None = None
    ip: str | None = None
    guest_ip: str | None = None
    mac: str | None = None
    ports: list[int] = []
    image: str | None = None
    owner: str = "local"
    firmware: str = "bios"
    node: str | None = None
    observed_at: datetime | None = None
    reachable: bool = True
    reason: str | None = None
    warnings: list[str] = []


class VmStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the VM was started. Bytes, except `cpu_time` (seconds of one core)."""

    cpu_time: float
    memory_rss: int
    disk_read: int
    disk_written: int
    disk_allocated: int
    net_received: int
    net_sent: int
    observed_at: datetime


class VmAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """`ip` as in the VM; `addresses` are the guest's own, learnt from `source`: `agent`, `lease` or `none`."""

    ip: str | None
    addresses: list[str]
    source: str
    guest_ip: str | None = None


class ConsoleLog(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the serial console's log. `next_offset` continues where this part ends (bytes).

    A log that is shorter than the offset that was asked for was begun anew or shortened: the part has its beginning.
    """

    text: str
    offset: int
    next_offset: int


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A small binary answer; REST sends it as it is, with its media type."""

    media_type: str
    data: bytes


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """One port forward, as it is kept; `active` while the VM runs and the port is open."""

    host_port: int
    guest_port: int
    protocol: str
    bind: str
    active: bool
