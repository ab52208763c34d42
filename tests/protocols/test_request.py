"""A call as a REST request: what `request` writes, `arguments` reads."""

from typing import Any

import pytest

from twinshare.protocols.access import Role
from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.operation import OperationState
from twinshare.protocols.peer import Message
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.vm import CloudInit, ForwardSpec, VmChange, VmSpec

TABLE = all_methods(SERVICES)
SPEC = VmSpec(name="a", image="tiny", memory=128, cloud_init=CloudInit(hostname="b"), labels={"k": "v"}, start=True)


@pytest.mark.parametrize(
    ("name", "arguments", "path", "query"),
    [
        ("list_vms", {}, "/vm", {}),
        ("create_vm", {"spec": SPEC}, "/vm", {}),
        ("get_vm", {"vm": "a"}, "/vm/a", {}),
        ("update_vm", {"vm": "a", "change": VmChange(autostart=False)}, "/vm/a", {}),
        ("stop_vm", {"vm": "a", "force": True, "timeout": 5}, "/vm/a/stop", {}),
        ("delete_vm", {"vm": "a", "delete_disk": False}, "/vm/a", {}),
        ("vm_log", {"vm": "a", "offset": 7, "limit": 9}, "/vm/a/log", {"offset": "7", "limit": "9"}),
        ("add_forward", {"vm": "a", "forward": ForwardSpec(host_port=0, guest_port=80)}, "/vm/a/port-forward", {}),
        ("remove_forward", {"vm": "a", "host_port": 8080}, "/vm/a/port-forward/8080", {}),
        ("get_image", {"image": "org/tiny:latest"}, "/image/org%2Ftiny%3Alatest", {}),
        ("list_operations", {"state": OperationState.DONE}, "/operations", {"state": "done"}),
        ("wait_operation", {"id": "x", "timeout": 0.5}, "/operations/x/wait", {"timeout": "0.5"}),
        ("create_token", {"token": TokenRequest(name="t", role=Role.VIEWER)}, "/tokens", {}),
        ("send_message", {"message": Message(peer_id="p", message_type="HELLO", data={})}, "/p2p/message", {}),
        ("join_fleet", {"ticket": "t"}, "/p2p/join", {}),
    ],
)
def test_a_request_carries_the_arguments(
    name: str, arguments: dict[str, Any], path: str, query: dict[str, str]
) -> None:
    method = TABLE[name]
    made = method.request(arguments)
    assert made[:2] == (path, query)
    inside = {parameter: arguments[parameter] for parameter in method.path_params}
    read = method.arguments(inside, made[1], made[2])
    assert {parameter: read[parameter] for parameter in arguments} == arguments


def test_a_part_of_a_path_is_not_empty() -> None:
    for name, path_params in ((name, method.path_params) for name, method in TABLE.items() if method.path_params):
        for empty in path_params:
            arguments = dict.fromkeys(path_params, 1) | {empty: ""}
            with pytest.raises(InvalidRequest, match=f"{empty}: must not be empty"):
                TABLE[name].request(arguments)


def test_defaults_stay_at_home() -> None:
    assert TABLE["create_vm"].request({"spec": VmSpec(name="a", image="tiny")})[2] == b'{"name":"a","image":"tiny"}'
    assert TABLE["stop_vm"].request({"vm": "a", "force": False})[2] == b""
