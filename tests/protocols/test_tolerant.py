"""What a later version sends and stores is read as far as this one knows it; what callers of REST send is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from twinshare.protocols.access import Limits, Role
from twinshare.protocols.console import ConsoleRequest
from twinshare.protocols.errors import InvalidRequest, PeerMisbehaved
from twinshare.protocols.image_service import ImageService
from twinshare.protocols.messages import Hello, Request, decode
from twinshare.protocols.operation import Operation, OperationState
from twinshare.protocols.services import OperationService, VmService
from twinshare.protocols.table import methods
from twinshare.protocols.tolerant import decode_json_tolerantly, decode_tolerantly
from twinshare.protocols.tunnel import TunnelRequest
from twinshare.protocols.vm import Vm, VmSpec, VmStatus

VMS, IMAGES, OPERATIONS = methods(VmService), methods(ImageService), methods(OperationService)
SPEC = {"name": "web", "image": "tiny", "cloud_init": {"hostname": "web", "vendor_data": "x"}, "secure_boot": True}
VM = {
    "id": "5f", "name": "web", "status": "hibernated", "cpu_cores": 1, "memory": 64, "disk_size": 1,
    "hypervisor": "kvm", "network": "default", "vnc_port": None, "created_at": "2025-05-10T12:00:00Z",
    "gpu": {"model": "x"},
}  # fmt: skip
OPERATION = {
    "id": "1", "kind": "migrate_vm", "target": "web", "node": "far", "state": "paused",
    "progress": {"done": 1, "eta": 5}, "created_at": "2025-05-10T12:00:00Z", "updated_at": "2025-05-10T12:00:00Z",
    "idempotency_key": "k", "trace": "0af7",
}  # fmt: skip


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def test_optional_fields_of_a_later_request_are_left_out() -> None:
    asked = VMS["create_vm"].unpack(pack({"spec": SPEC, "dry_run": False}))
    assert asked == {
        "spec": msgspec.convert({"name": "web", "image": "tiny", "cloud_init": {"hostname": "web"}}, VmSpec)
    }
    assert VMS["update_vm"].unpack(pack({"vm": "web", "change": {"autostart": True, "memory": 9}}))["change"].autostart


def test_what_is_known_is_checked_all_the_same() -> None:
    with pytest.raises(InvalidRequest) as refused:
        VMS["create_vm"].unpack(pack({"spec": SPEC | {"memory": 1}}))
    assert refused.value.details["path"] == "spec.memory"
    with pytest.raises(InvalidRequest):
        VMS["create_vm"].unpack(pack({"spec": {"image": "tiny", "later": 1}}))


def test_rest_refuses_unknown_fields_and_values_of_clients() -> None:
    with pytest.raises(InvalidRequest):
        VMS["create_vm"].arguments({}, {}, msgspec.json.encode(SPEC))
    with pytest.raises(InvalidRequest):
        OPERATIONS["list_operations"].arguments({}, {"state": "nonsense"}, b"")
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("auditor", Role)


def test_an_answer_with_unknown_values_and_fields_is_read() -> None:
    [vm] = VMS["list_vms"].unpack_result(pack([VM]))
    assert (vm.status, vm.name) == (VmStatus.UNKNOWN, "web")
    operation = OPERATIONS["get_operation"].unpack_result(pack(OPERATION))
    assert (operation.state, operation.kind, operation.progress.done) == (OperationState.UNKNOWN, "migrate_vm", 1)
    assert not operation.state.ended
    found = {"fault": "moved", "message": "m", "mended": True, "size": 3}
    check = IMAGES["fsck_images"].unpack_result(pack({"images": 1, "bytes": 1, "findings": [found]}))
    assert check.findings[0].fault == "unknown"
    with pytest.raises(PeerMisbehaved):
        VMS["list_vms"].unpack_result(pack([{"status": "running"}]))


def test_frames_of_a_later_session_are_read() -> None:
    hello = decode(pack({"versions": [1, 2], "name": "far", "powers": ["x"]}), Hello)
    assert (hello.versions, hello.name) == ((1, 2), "far")
    head = [30.0, "auditor", "key", False, 0, {"vm": "web"}, "", "appended"]
    request = decode(pack(head), Request)
    assert (request.role, request.key) == (Role.VIEWER, "key")
    assert msgspec.msgpack.decode(request.arguments) == {"vm": "web"}
    assert decode(pack(OPERATION), Operation).state is OperationState.UNKNOWN


def test_an_unknown_role_allows_the_least() -> None:
    asked = {"vm": "web", "port": 22, "role": "auditor", "compress": True}
    assert decode_tolerantly(pack(asked), TunnelRequest).role is Role.VIEWER
    assert decode_tolerantly(pack({"vm": "web", "role": "owner"}), ConsoleRequest).role is Role.VIEWER
    with pytest.raises(msgspec.ValidationError):
        decode_tolerantly(pack({"vm": "web", "role": 7}), ConsoleRequest)


class Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Role
    limits: Limits | None = None
    vms: dict[str, Vm] = {}
    names: tuple[str, ...] = ()


def test_stored_values_of_every_shape_are_read() -> None:
    value = {"role": "auditor", "limits": {"vms": 3, "gpus": 1}, "vms": {"web": VM}, "names": ["a"], "later": [1]}
    for found in (
        decode_tolerantly(pack(value), Stored),
        decode_json_tolerantly(msgspec.json.encode(value), Stored),
    ):
        assert (found.role, found.limits, found.names) == (Role.VIEWER, Limits(vms=3), ("a",))
        assert found.vms["web"].status is VmStatus.UNKNOWN


def test_hostile_bytes_are_an_error_and_no_crash() -> None:
    for data in (b"", b"\xc1", pack([1]), b"\x91" * 5000, b"\x82\x90\x01\x90\x02"):
        with pytest.raises((msgspec.MsgspecError, ValueError, RecursionError)):
            decode_tolerantly(data, Vm)
