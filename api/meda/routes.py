"""Each operation of Meda's API as a route and as a line of its document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from quart import Response

from ...agent.node import Node
from ...protocols.method import Method, summary
from ...protocols.openapi import Endpoint, Media, document, endpoint
from ...protocols.table import Dispatcher
from ..rest.requests import current_request, request_options
from ..rest.responses import json_response
from ..rest.routes import Route
from .bodies import ApiError
from .images import MedaImages
from .system import MedaSystem
from .vms import MedaVms

ROOT = "/api/v1"
_TAGS: dict[type, str] = {MedaVms: "VMs", MedaImages: "Images", MedaSystem: "System"}
_CREATED = frozenset({"create_vm", "create_image", "run_image"})
_VM = {"name": "test-vm", "memory": "2G", "cpus": 4, "disk": "20G"}
_EXAMPLES: dict[str, Any] = {
    "create_vm": _VM,
    "port_forward": {"host_port": 8080, "guest_port": 80},
    "pull_image": {"image": "ubuntu:latest", "registry": "ghcr.io", "org": "cirunlabs"},
    "push_image": {"name": "my-image", "image": "my-registry.com/my-image:v1.0", "dry_run": True},
    "create_image": {"name": "my-image", "tag": "v1.0", "from_vm": "test-vm"},
    "prune_images": {"all": False, "force": True},
    "run_image": {"image": "ubuntu:latest", "name": "ubuntu-vm", "memory": "1G", "cpus": 2},
}


def routes(node: Node) -> Iterator[Route]:
    """A route for each operation; the role is checked where it is done, and here before anything is looked at."""
    dispatcher = Dispatcher({
        MedaVms: lambda caller: MedaVms(node, caller),
        MedaImages: lambda caller: MedaImages(node, caller),
        MedaSystem: lambda caller: MedaSystem(node, caller),
    })  # fmt: skip
    for method in dispatcher.table.values():
        yield _route(dispatcher, method)


def _route(dispatcher: Dispatcher, method: Method) -> Route:
    status = 201 if method.name in _CREATED else 200

    async def view(**params: str) -> Response:
        request = current_request()
        arguments = method.arguments(params, request.arguments(), await request.json_body())
        return json_response(await dispatcher.call(request_options(request, method), method, arguments), status)

    path, answers = ROOT + method.path, {status: Media(method.result)}
    described = endpoint(method, path, answers, operation_id=method.name, tag=_TAGS[method.service])
    return Route(method.verb, path, method.name, view, replace(described, example=_EXAMPLES.get(method.name)))


def describe(endpoints: Sequence[Endpoint], version: str) -> dict[str, Any]:
    """The OpenAPI document of this dialect."""
    return document(
        endpoints,
        title="Meda API, served by twinshare",
        version=version,
        description="The REST API of Meda over the VMs and images of this node. Sizes are written as `2G` or `512M`; "
        "a field that is not in a schema is refused. All errors look alike: see `ApiError`.",
        tags={_TAGS[service]: summary(service) for service in _TAGS},
        error=ApiError,
    )
