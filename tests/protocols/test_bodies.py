"""Documented answers: the guide's keys are there, and the client gets back what the operation returned."""

from datetime import UTC, datetime
from typing import Any, get_origin

import msgspec
import pytest

from twinshare.protocols.bodies import body_type, present, restore
from twinshare.protocols.peer import MessageReply, P2pState
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.vm import Vm, VmStatus

TABLE = all_methods(SERVICES)
VM = Vm(
    id="0f6e1c1e-6f0e-5d7b-9a51-8c3f5d6f7a10",
    name="example-vm",
    status=VmStatus.RUNNING,
    cpu_cores=2,
    memory=2048,
    disk_size=20,
    hypervisor="kvm",
    network="default",
    vnc_port=5900,
    created_at=datetime(2025, 5, 10, 10, 30, tzinfo=UTC),
)
STATE = P2pState(status="started", id="peer-123", address="192.168.1.100", port=8000)
REMOTE = {"success", "peer_id", "vm_id", "name", "status"}


@pytest.mark.parametrize(
    ("name", "result", "peer", "documented"),
    [
        ("list_vms", [VM], None, {"vms"}),
        ("list_vms", [VM], "peer-456", {"vms"}),
        ("start_vm", VM, None, {"success", "name", "status", "vnc_port"}),
        ("stop_vm", VM, None, {"success", "name", "status"}),
        ("delete_vm", VM, None, {"success", "name"}),
        ("create_vm", VM, "peer-456", REMOTE),
        ("start_vm", VM, "peer-456", REMOTE),
        ("stop_vm", VM, "peer-456", REMOTE),
        ("delete_vm", VM, "peer-456", REMOTE - {"status"}),
        ("start_p2p", STATE, None, {"success", "status", "id", "address", "port"}),
        ("stop_p2p", STATE, None, {"success", "status"}),
        ("send_message", MessageReply(status="ok", message="Hello received"), None, {"response"}),
        ("list_peers", [], None, {"peers"}),
    ],
)
def test_an_answer_has_the_documented_keys_and_gives_the_result_back(
    name: str, result: Any, peer: str | None, documented: set[str]
) -> None:
    method = TABLE[name]
    sent = msgspec.json.encode(present(method, result, peer))
    body = msgspec.json.decode(sent)
    assert documented <= body.keys()
    assert body.get("success", True) is True
    assert body.get("peer_id", peer) == peer
    assert restore(msgspec.json.decode(sent, type=body_type(method, remote=peer is not None))) == result


def test_create_and_show_answer_the_vm_itself() -> None:
    for name in ("create_vm", "get_vm"):
        assert present(TABLE[name], VM) is VM


def test_every_list_answers_an_object() -> None:
    for method in TABLE.values():
        if method.name.startswith("list_") and get_origin(method.result) is list:
            assert isinstance(msgspec.to_builtins(present(method, [])), dict), method.name
