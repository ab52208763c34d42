"""The hypervisor port. `memory` and `libvirt` implement it; `contract` checks both.

Identity is the domain's UUID everywhere. All calls are safe to repeat: the agent repeats them after a crash.
Raises, where nothing else is said: `HypervisorDown` when the hypervisor cannot be asked (it reconnects by itself),
`VmNotFound` for an unknown id, `DeadlineExceeded` when a call exceeds its lane's timeout.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import trio


class DomainState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    SHUTOFF = "shutoff"
    SUSPENDED = "suspended"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPlan:
    """A domain to define. Memory in MiB. `directory` is the VM's own folder: its sockets and its serial log go there.

    Files in `directory`: `tty.sock`, `tty.log`, `vnc.sock`, `agent.sock`, `guest.sock`, `nvram.fd`. `metadata` is text
    that the hypervisor keeps for us.
    """

    id: str
    name: str
    cpu_cores: int
    memory: int
    accelerator: str  # "kvm" or "qemu"
    directory: Path
    disk: Path
    seed: Path | None
    network: str
    mac: str
    metadata: str
    firmware: str = "bios"  # or "uefi", whose variables are in `nvram.fd`


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain as the hypervisor reports it. `reason` is `crashed`, `disk_full`, `user`, …, or None.

    `metadata` is None for a domain that is not ours. `started_at` is None unless the domain is active.
    """

    id: str
    name: str
    state: DomainState
    reason: str | None
    cpu_cores: int
    memory: int
    accelerator: str
    metadata: str | None
    started_at: datetime | None
    mac: str | None = None  # of its first network card


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainStats:
    """Counters since the start. Bytes; `cpu_time` in seconds."""

    cpu_time: float
    memory_rss: int
    disk_read: int
    disk_written: int
    disk_allocated: int
    net_received: int
    net_sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The guest's IP addresses. `source` is `agent`, `lease` or `none`."""

    addresses: Sequence[str]
    source: str


class ChangeKind(StrEnum):
    """`RESYNC`: changes may have been lost (the connection broke, or the channel was full): list again."""

    DEFINED = "defined"
    UNDEFINED = "undefined"
    STATE = "state"
    DISK_FULL = "disk_full"
    AGENT_UP = "agent_up"
    AGENT_DOWN = "agent_down"
    DOWN = "down"
    RESYNC = "resync"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a domain; `id` is None for `DOWN` and `RESYNC`."""

    kind: ChangeKind
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What this hypervisor can do here. `accelerator` is `kvm` only where KVM works.

    `architecture` is that of the guests, as Linux names it; `firmwares` are those that domains can be defined with.
    """

    name: str
    version: str
    uri: str
    accelerator: str
    networks: Sequence[str]
    host_cpus: int
    architecture: str = field(default_factory=platform.machine)
    firmwares: Sequence[str] = ("bios", "uefi")
    problems: Sequence[str] = field(default=())


class Hypervisor(Protocol):
    """Lists, defines, starts and stops domains."""

    @property
    def features(self) -> Features:
        """What it can do, as found when it was opened."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it can be asked now; `DOWN` and `RESYNC` among the changes mark the end and the return."""
        ...

    @property
    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        """One bounded channel; when it is full a `RESYNC` replaces the oldest changes."""
        ...

    async def list_domains(self) -> Sequence[Domain]:
        """List all domains, ours and others. Never blocks on a hung guest."""
        ...

    async def get_domain(self, id: str) -> Domain:
        """Return one domain."""
        ...

    async def define(self, plan: DomainPlan) -> None:
        """Define, or redefine the same id; a running domain goes on as it was started.

        Raises: VmExists when another domain has the name, Unsupported when there is no such network.
        """
        ...

    async def undefine(self, id: str) -> None:
        """Remove an inactive domain and its snapshots; no error if it is gone. Raises: WrongState if active."""
        ...

    async def start(self, id: str) -> None:
        """Boot; an active one stays as it is. Raises: InsufficientResources, ImageDamaged, Unsupported, WrongState."""
        ...

    async def shutdown(self, id: str) -> None:
        """Ask the guest to power off (guest agent, else ACPI) and return at once; no error if it is off."""
        ...

    async def destroy(self, id: str) -> None:
        """Force it off; no error if it is off. Works on a hung QEMU, and during a shutdown."""
        ...

    async def pause(self, id: str) -> None:
        """Pause it; no error if it is paused. Raises: WrongState when it is off."""
        ...

    async def resume(self, id: str) -> None:
        """Resume a paused or suspended one; no error if it runs. Raises: WrongState when it is off.

        A guest does not notice a pause: its clock is set then as `GuestClock` does, best effort.
        """
        ...

    async def set_metadata(self, id: str, metadata: str) -> None:
        """Replace the text of the plan's `metadata`, whether the domain runs or not."""
        ...

    async def disk_path(self, id: str) -> Path:
        """Return the file of the first disk that the guest writes to, or will when it starts.

        It is the plan's only at first: a snapshot or a block copy that somebody makes with libvirt changes it.
        Raises: Unsupported when it is no file.
        """
        ...


@runtime_checkable
class GuestInspection(Protocol):
    """Optional power: inspect a running domain. Each call raises WrongState when it is not running."""

    async def stats(self, id: str) -> DomainStats:
        """Return what the guest has used since its start."""
        ...

    async def addresses(self, id: str) -> Addresses:
        """Return the guest's IP addresses, those of its network card and IPv4 first; none while none is known."""
        ...

    async def screenshot(self, id: str) -> bytes:
        """Return the screen as PNG."""
        ...


@runtime_checkable
class GuestClock(Protocol):
    """Optional power: set the clock of a running guest."""

    async def set_guest_time(self, id: str) -> None:
        """Set the guest's clock to the host's, by the guest agent.

        Raises: WrongState when it is not running, Unsupported when no agent answers.
        """
        ...


@runtime_checkable
class GuestAgent(Protocol):
    """Optional power: ask the QEMU guest agent."""

    async def ask_guest_agent(self, id: str, command: str, arguments: Mapping[str, object]) -> object:
        """Send one command, such as `guest-exec`; what it returns is the guest's word.

        Raises: WrongState when it is not running, Unsupported when no agent answers, GuestRefused what it refuses.
        """
        ...


@runtime_checkable
class GuestStreams(Protocol):
    """Optional power: open streams to a running guest. Each call raises WrongState when it is not running."""

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        """Connect to a TCP port of the guest, whatever network it is on.

        QEMU's own NAT accepts at once, and closes soon after when nothing listens in the guest.
        Raises: Unsupported when its network cannot be reached, OSError when nothing answers.
        """
        ...

    async def dial_screen(self, id: str) -> trio.SocketStream:
        """Connect to the guest's screen, which speaks RFB (VNC). Raises: Unsupported when it has none, OSError."""
        ...

    async def dial_console(self, id: str) -> trio.SocketStream:
        """Connect to the guest's serial console, whose output also goes into `tty.log`; it ends when the domain is off.

        It serves one connection at a time: a second one gets nothing until the first is closed. Unread output blocks
        the guest.
        Raises: Unsupported when it has none, OSError.
        """
        ...

    async def dial_channel(self, id: str) -> trio.SocketStream:
        """Connect to the guest channel, the virtio-serial port `org.twinshare.guest.0`; one connection at a time.

        It connects whether or not a process in the guest has the port open; what is written before that is kept or
        dropped by QEMU. Whatever comes from it is the guest's, which may be hostile.
        Raises: Unsupported when the domain was defined without one, OSError.
        """
        ...

    async def channel_is_open(self, id: str) -> bool:
        """Return whether a process in the guest has the port of the guest channel open; True where that is not known.

        The guest decides that, and may be hostile. Raises: Unsupported when the domain was defined without the port.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedDisk:
    """A raw disk as of one instant, served by NBD on a unix socket under the name `export`."""

    socket: Path
    export: str


@runtime_checkable
class DiskExport(Protocol):
    """Optional power: read a running domain's disk while the guest runs on."""

    def export_disk(self, id: str, directory: Path) -> AbstractAsyncContextManager[ExportedDisk]:
        """Export the first disk as it is on entering, until the block is left; one export of a domain at a time.

        The guest agent, where there is one, freezes the file systems for that instant. Scratch files are put into the
        domain's own `directory`, and removed. When the domain stops, reading the export fails.
        Raises: WrongState when it is off, Unsupported.
        """
        ...
