"""Events: each kind with its payload, the forms that are stored and sent, and who listens to which."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.golden.plain import EVENTS
from twinshare.protocols.events import PAYLOADS, Event, EventKind, OperationDone, P2pMessage, VmStateChanged, payload_of
from twinshare.protocols.operation import OperationState, Progress
from twinshare.protocols.vm import VmStatus

PAGE = Path(__file__).parents[2] / "api/web/store.js"


def event(type: str, data: dict[str, Any]) -> Event:
    return Event(id=1, type=type, at=datetime(2026, 11, 28, tzinfo=UTC), data=data)


def test_every_kind_has_a_payload_that_says_when_it_is_sent() -> None:
    assert set(PAYLOADS) == set(EventKind)
    assert all(payload.__doc__ for payload in PAYLOADS.values())


@pytest.mark.parametrize("type", EVENTS)
def test_what_the_first_version_stored_is_read(type: str) -> None:
    payload = payload_of(event(type, EVENTS[type]))
    assert payload is not None
    assert EVENTS[type].items() <= msgspec.to_builtins(payload).items()


def test_the_form_of_an_operation_leaves_out_an_error_that_is_not() -> None:
    done = OperationDone(id="1", kind="stop_vm", target="a", state=OperationState.DONE, progress=Progress())
    progress = {"done": 0, "total": None, "unit": "steps", "message": ""}
    assert msgspec.to_builtins(done) == {
        "id": "1", "kind": "stop_vm", "target": "a", "state": "done", "progress": progress,
    }  # fmt: skip


def test_a_message_names_its_sender_from() -> None:
    message = P2pMessage(sender="12D3", name="far", message_type="NOTE", data={})
    assert msgspec.to_builtins(message)["from"] == "12D3"


def test_what_a_later_version_stored_is_no_error() -> None:
    assert payload_of(event("vm.migrated", {"id": "1"})) is None
    assert payload_of(event("vm.state", {"other": 1})) is None
    later = payload_of(event("vm.state", {"id": "1", "name": "a", "status": "floating", "reason": None, "more": 1}))
    assert later == VmStateChanged(id="1", name="a", status=VmStatus.UNKNOWN)


def test_the_page_listens_to_all_events() -> None:
    listening = PAGE.read_text().partition("const KINDS = [")[2].partition("];")[0]
    assert set(re.findall(r'"([a-z0-9._]+)"', listening)) == set(EventKind)
