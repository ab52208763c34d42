"""The events of VMs: each status is published once, when it differs from the one that was published last."""

from __future__ import annotations

from ...protocols.access import LOCAL
from ...protocols.events import VmStateChanged, VmUndefined, payload_of
from ...protocols.vm import Vm, VmStatus
from ..events import EventLog


class StatusEvents:
    """Begins with what a former run of the agent published, so that listeners get only what has changed since."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._published: dict[str, tuple[VmStatus, str | None]] = {}
        self._owners: dict[str, str] = {}
        for event in events.kept:
            match payload_of(event):
                case VmStateChanged() as said:
                    self._published[said.id] = (said.status, said.reason)
                case VmUndefined() as gone:
                    self._published.pop(gone.id, None)

    def publish(self, id: str, vm: Vm | None) -> None:
        """Publish the status of a VM, or that it is gone (None)."""
        if vm is None:
            if self._published.pop(id, None) is not None:
                self._events.publish(VmUndefined(id=id), self._owners.pop(id, LOCAL))
        elif self._published.get(id) != (vm.status, vm.reason):
            self._published[id] = (vm.status, vm.reason)
            self._owners[id] = vm.owner or LOCAL
            state = VmStateChanged(id=id, name=vm.name, status=vm.status, reason=vm.reason)
            self._events.publish(state, self._owners[id])
