"""Meda's code words, and its error body: which word answers which error.

Each route but `health` has a word for whatever goes wrong in it. A VM that is not there and a machine that is full
have their own, everywhere. What is refused before a route is found (no such path, no such caller) keeps our word, in
capitals.
"""

from __future__ import annotations

import msgspec
from quart import Response

from ...protocols.errors import InsufficientResources, TwinshareError, VmNotFound
from ..rest.errors import error_headers
from ..rest.responses import json_response
from .bodies import ApiError

VM_NOT_FOUND = "VM_NOT_FOUND"
WORDS = {
    "list_vms": "VM_LIST_ERROR",
    "create_vm": "VM_CREATE_ERROR",
    "get_vm": "VM_GET_ERROR",
    "start_vm": "VM_START_ERROR",
    "stop_vm": "VM_STOP_ERROR",
    "delete_vm": "VM_DELETE_ERROR",
    "get_vm_ip": "VM_IP_ERROR",
    "list_forwards": "PORT_FORWARD_ERROR",
    "port_forward": "PORT_FORWARD_ERROR",
    "remove_forward": "PORT_FORWARD_ERROR",
    "list_images": "IMAGE_LIST_ERROR",
    "create_image": "IMAGE_CREATE_ERROR",
    "pull_image": "IMAGE_PULL_ERROR",
    "push_image": "IMAGE_PUSH_ERROR",
    "prune_images": "IMAGE_PRUNE_ERROR",
    "remove_image": "IMAGE_REMOVE_ERROR",
    "run_image": "IMAGE_RUN_ERROR",
    "capacity": "CAPACITY_PROBE_ERROR",
}
# A word for each thing that a machine can be out of. Where VMs are made or started, Meda answers 503 and not 507.
EXHAUSTED = {"memory": "MEM_EXHAUSTED", "cpu": "CPU_EXHAUSTED", "disk": "DISK_EXHAUSTED"}
_TAKES_ROOM = frozenset({"create_vm", "run_image", "start_vm"})
RETRY_AFTER = 30
# The fields of a VM that are named otherwise here.
_FIELDS = {"disk_size": "disk", "cpu_cores": "cpus", "cloud_init.user_data": "user_data"}


def render_error(error: TwinshareError, name: str | None) -> Response:
    """Answer an error of the route `name`; None stands for what comes before a route is found and a caller let in."""
    if name is None:
        return _response(error, error.code.upper())
    if isinstance(error, InsufficientResources) and name in _TAKES_ROOM:
        return _response(
            error, EXHAUSTED[error.details.get("resource", "disk")], 503, {"retry-after": str(RETRY_AFTER)}
        )
    if isinstance(error, VmNotFound):
        return _response(error, VM_NOT_FOUND)
    return _response(error, WORDS.get(name, error.code.upper()))


def _response(
    error: TwinshareError, word: str, status: int | None = None, headers: dict[str, str] | None = None
) -> Response:
    message, details = error.message, dict(error.details)
    field = details.get("path")
    if field in _FIELDS:
        details["path"] = _FIELDS[field]
        message = message.replace(f"{field}:", f"{_FIELDS[field]}:")
    details = {**details, "message": message, "reason": error.code}
    body = ApiError(error=message, code=word, details=msgspec.to_builtins(details))
    return json_response(body, status or error.status, {**error_headers(error), **(headers or {})})
