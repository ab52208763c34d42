"""What the agent asks of a hypervisor. `fake` and `libvirt` implement it; `agent.testing` holds both to it.

Identity is the domain's UUID everywhere. All calls are safe to repeat: the agent repeats them after a crash.
Raises, where nothing else is said: `HypervisorDown` when the hypervisor cannot be asked (it reconnects by itself),
`VmNotFound` for an unknown id, `DeadlineExceeded` when a call hangs past its lane's patience.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    Files in `directory`: `tty.sock`, `tty.log`, `vnc.sock`, `agent.sock`. `metadata` is opaque text that the hypervisor
    keeps for us.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain as the hypervisor sees it. `reason` is a word such as `crashed`, `disk_full`, `user`, or None.

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
    """`source` says where they were learnt: `agent`, `lease`, `none`."""

    addresses: Sequence[str]
    source: str


class ChangeKind(StrEnum):
    """`RESYNC`: events may have been lost (connection lost and back, or the channel was full): list again."""

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
    """Something that happened to a domain; `id` is None for `DOWN` and `RESYNC`."""

    kind: ChangeKind
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What this hypervisor can do here. `accelerator` is `kvm` only where KVM truly works."""

    name: str
    version: str
    uri: str
    accelerator: str
    networks: Sequence[str]
    host_cpus: int
    problems: Sequence[str] = field(default=())


class Hypervisor(Protocol):
    """Life and death of domains."""

    @property
    def features(self) -> Features:
        """As they were found when it was opened."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it can be asked now; `DOWN` and `RESYNC` among the changes tell when that ends and begins."""
        ...

    @property
    def changes(self) -> trio.MemoryReceiveChannel[Change]:
        """One bounded channel; when it is full the oldest changes give way and a `RESYNC` takes their place."""
        ...

    async def list_domains(self) -> Sequence[Domain]:
        """All domains, ours and others. Never blocks on a hung guest."""
        ...

    async def get_domain(self, id: str) -> Domain: ...

    async def define(self, plan: DomainPlan) -> None:
        """Define, or redefine the same id; a running domain goes on as it was started.

        Raises: VmExists when another domain has the name, Unsupported when there is no such network.
        """
        ...

    async def undefine(self, id: str) -> None:
        """Forget an inactive domain and what hangs on it; no error if it is gone. Raises: WrongState if active."""
        ...

    async def start(self, id: str) -> None:
        """Boot; an active one stays as it is. Raises: InsufficientResources, ImageDamaged, Unsupported, WrongState."""
        ...

    async def shutdown(self, id: str) -> None:
        """Ask the guest to power off (guest agent, else ACPI) and return at once; no error if it is off."""
        ...

    async def destroy(self, id: str) -> None:
        """Pull the plug; no error if it is off. Works on a hung QEMU."""
        ...

    async def pause(self, id: str) -> None:
        """Hold the CPUs; no error if they are held. Raises: WrongState when it is off."""
        ...

    async def resume(self, id: str) -> None:
        """Let a paused or suspended one go on; no error if it runs. Raises: WrongState when it is off."""
        ...

    async def set_metadata(self, id: str, metadata: str) -> None:
        """Replace the text of the plan's `metadata`, whether the domain runs or not."""
        ...


@runtime_checkable
class Observing(Protocol):
    """Optional power: look at a running domain. Each raises WrongState when it is not running."""

    async def stats(self, id: str) -> DomainStats:
        """What the guest has used since its start."""
        ...

    async def addresses(self, id: str) -> Addresses:
        """The guest's IP addresses, those of its own card and IPv4 first; none while none is known."""
        ...

    async def screenshot(self, id: str) -> bytes:
        """A PNG."""
        ...


@runtime_checkable
class Dialling(Protocol):
    """Optional power: reach into a running guest from this process. Each raises WrongState when it is not running."""

    async def dial_guest(self, id: str, port: int) -> trio.SocketStream:
        """A TCP port of the guest, whatever network it is on.

        QEMU's own NAT accepts at once, and closes soon after when nothing listens in the guest.
        Raises: Unsupported when its network cannot be reached, OSError when nothing answers.
        """
        ...

    async def dial_screen(self, id: str) -> trio.SocketStream:
        """The guest's screen, which speaks RFB (VNC). Raises: Unsupported when it has none, OSError."""
        ...

    async def dial_console(self, id: str) -> trio.SocketStream:
        """The guest's first serial line, whose output also goes on into `tty.log`; it ends when the domain is off.

        It has one connection at a time: whoever comes second hears nothing until the first is closed. What is not read
        from it holds up the guest.
        Raises: Unsupported when it has none, OSError.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskView:
    """A disk as it was at one instant: a raw one, served by NBD on a unix socket under the name `export`."""

    socket: Path
    export: str


@runtime_checkable
class Viewing(Protocol):
    """Optional power: read a running domain's disk while the guest goes on."""

    def view_disk(self, id: str, directory: Path) -> AbstractAsyncContextManager[DiskView]:
        """The first disk as it is on entering, until the block is left; one view of a domain at a time.

        The guest's file systems are settled for that instant where an agent in it listens. What is needed for the view
        is put into the domain's own `directory`, and taken away. When the domain stops, reading the view fails.
        Raises: WrongState when it is off, Unsupported.
        """
        ...
