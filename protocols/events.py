"""Events: things that happened on a node, as they are sent to listeners and stored.

A new event is a member of `EventKind` and the Struct of its payload here; it is published where it happens.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Self

import msgspec

from .errors import ErrorBody
from .image import Image
from .operation import OperationState, Progress
from .tolerant import known_part
from .vm import VmStatus


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `id` grows by one within a node's life and goes on after a restart; a listener resumes after it.

    `type` is a value of `EventKind`, or a kind that only a later version knows; `data` is its payload as it is sent.
    """

    id: int
    type: str
    at: datetime
    data: dict[str, Any] = {}


class EventKind(StrEnum):
    """The kinds of events that this version publishes."""

    VM_STATE = "vm.state"
    VM_DELETED = "vm.deleted"
    VM_DISK_FULL = "vm.disk_full"
    VM_EXPIRING = "vm.expiring"
    IMAGE_ADDED = "image.added"
    IMAGE_REMOVED = "image.removed"
    OPERATION_PROGRESS = "op.progress"
    OPERATION_DONE = "op.done"
    HYPERVISOR_DOWN = "hypervisor.down"
    HYPERVISOR_UP = "hypervisor.up"
    PEER_ONLINE = "peer.online"
    PEER_OFFLINE = "peer.offline"
    FLEET_JOINED = "fleet.joined"
    FLEET_LEFT = "fleet.left"
    P2P_MESSAGE = "p2p.message"
    RESET = "reset"


class EventPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What an event of one kind says; a base class of several kinds has no `event`."""

    event: ClassVar[EventKind]


class VmStateChanged(EventPayload, frozen=True, kw_only=True):
    """A VM was created or has another status. `reason` as in the VM (`disk_full`, `crashed`)."""

    event = EventKind.VM_STATE
    id: str
    name: str
    status: VmStatus
    reason: str | None = None


class VmUndefined(EventPayload, frozen=True, kw_only=True):
    """A VM is no longer defined."""

    event = EventKind.VM_DELETED
    id: str


class VmDiskFull(EventPayload, frozen=True, kw_only=True):
    """A write of a VM found the node's disk full, and QEMU paused the VM."""

    event = EventKind.VM_DISK_FULL
    id: str


class VmExpiring(EventPayload, frozen=True, kw_only=True):
    """The node deletes a VM at `expires_at`, when its `ttl` ends, unless somebody sets a new one before."""

    event = EventKind.VM_EXPIRING
    id: str
    name: str
    expires_at: datetime


class ImageEvent(EventPayload, frozen=True, kw_only=True):
    """An image of the store, under one of its names."""

    name: str
    tag: str
    digest: str

    @classmethod
    def of(cls, image: Image) -> Self:
        return cls(name=image.name, tag=image.tag, digest=image.digest)


class ImageAdded(ImageEvent, frozen=True, kw_only=True):
    """An image was captured, imported or pulled."""

    event = EventKind.IMAGE_ADDED


class ImageRemoved(ImageEvent, frozen=True, kw_only=True):
    """An image's name was removed, with its disk if that was the last name."""

    event = EventKind.IMAGE_REMOVED


class OperationEvent(EventPayload, frozen=True, kw_only=True, omit_defaults=True):
    """An operation of the node's journal; `kind` is its method, `target` what it works on."""

    id: str
    kind: str
    target: str
    state: OperationState
    progress: Progress
    error: ErrorBody | None = None
    traceparent: str = ""


class OperationProgress(OperationEvent, frozen=True, kw_only=True):
    """An operation has reached a step, or moved more bytes. Sent every 0.2 s at most."""

    event = EventKind.OPERATION_PROGRESS


class OperationDone(OperationEvent, frozen=True, kw_only=True):
    """An operation has ended; `state` and `error` say how."""

    event = EventKind.OPERATION_DONE


class HypervisorLost(EventPayload, frozen=True, kw_only=True):
    """The connection to the hypervisor is lost. VMs run on; operations are refused until it is back."""

    event = EventKind.HYPERVISOR_DOWN


class HypervisorBack(EventPayload, frozen=True, kw_only=True):
    """The connection to the hypervisor is back after a loss."""

    event = EventKind.HYPERVISOR_UP


class PeerSessionEvent(EventPayload, frozen=True, kw_only=True):
    """A member of the fleet, by its peer ID and name."""

    id: str
    name: str


class PeerOnline(PeerSessionEvent, frozen=True, kw_only=True):
    """A session with a peer began."""

    event = EventKind.PEER_ONLINE


class PeerOffline(PeerSessionEvent, frozen=True, kw_only=True):
    """The session with a peer ended."""

    event = EventKind.PEER_OFFLINE


class FleetJoined(EventPayload, frozen=True, kw_only=True):
    """The node joined the fleet with the ID `fleet` by a ticket of the node named `by`."""

    event = EventKind.FLEET_JOINED
    fleet: str
    by: str


class FleetLeft(EventPayload, frozen=True, kw_only=True):
    """The node left the fleet with the ID `fleet`."""

    event = EventKind.FLEET_LEFT
    fleet: str


class P2pMessage(EventPayload, frozen=True, kw_only=True):
    """A peer sent a message that is not answered by the node itself; `from` is its peer ID."""

    event = EventKind.P2P_MESSAGE
    sender: str = msgspec.field(name="from")
    name: str
    message_type: str
    data: dict[str, Any]


class EventsReset(EventPayload, frozen=True, kw_only=True):
    """Events after the one that the listener asked to go on after are lost, or that one itself is beyond the newest.

    It comes first, is not kept, and has the number to go on after: ask for everything again, then go on.
    """

    event = EventKind.RESET


def reset_event(last: int, at: datetime) -> Event:
    """Return the event `reset` for a listener that goes on after the event `last`."""
    return Event(id=last, type=str(EventKind.RESET), at=at)


def _kinds(base: type[EventPayload]) -> dict[EventKind, type[EventPayload]]:
    found = {base.event: base} if "event" in vars(base) else {}
    for kind in base.__subclasses__():
        found |= _kinds(kind)
    return found


PAYLOADS = _kinds(EventPayload)
"""The payload's class of each kind of event."""

if missing := set(EventKind) - set(PAYLOADS):
    raise TypeError(f"kinds of events without a payload: {', '.join(sorted(missing))}")


def payload_of(event: Event) -> EventPayload | None:
    """The typed payload of an event; None for a kind or a form that this version does not know."""
    kind = PAYLOADS.get(EventKind(event.type)) if event.type in set(EventKind) else None
    try:
        return msgspec.convert(known_part(event.data, kind), kind) if kind else None
    except (msgspec.ValidationError, ValueError):
        return None
