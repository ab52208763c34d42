"""Which view serves a path: segment by segment, percent-decoded on its own, literals first; the table on the app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from quart import Blueprint, Quart
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed, NotFound

from tests.api.served import config
from tests.api.test_asgi import OWNER, application, ask
from twinshare.agent.open_node import open_node
from twinshare.api.app import make_app
from twinshare.api.meda.images import MedaImages
from twinshare.api.meda.system import MedaSystem
from twinshare.api.meda.vms import MedaVms
from twinshare.api.rest.application import RestApp
from twinshare.api.rest.metrics import Metrics
from twinshare.api.rest.routes import Route, add_routes
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods


async def nothing(**_: str) -> Any:
    """A view for routes that are only matched."""


def app_with(*routes: str) -> RestApp:
    blueprint = Blueprint("table", __name__)
    parts = (one.split(" ", 1) for one in routes)
    add_routes(blueprint, (Route(verb, path, f"route {n}", nothing) for n, (verb, path) in enumerate(parts)))
    app = RestApp(1 << 20, Metrics(), lambda _: nullcontext())
    app.register_blueprint(blueprint)
    return app


async def match(verb: str, path: bytes) -> tuple[str, dict[str, Any]]:
    """The verb and the rule of the route that Quart finds, and the values of its placeholders."""
    scope = {"raw_path": path, "state": {"connection": OWNER}}
    async with TABLE.test_request_context("/", method=verb, scope_base=scope) as context:
        if context.request.routing_exception is not None:
            raise context.request.routing_exception
        rule = context.request.url_rule
        assert rule is not None
        return f"{verb} {rule.rule}", dict(context.request.view_args or {})


TABLE = app_with(
    "GET /vm", "POST /vm", "GET /vm/<vm>", "DELETE /vm/<vm>", "POST /vm/<vm>/start", "GET /image/<image>",
    "POST /image/build-tiny", "GET /remote/<peer>/vm/<vm>",
)  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "path", "name", "params"),
    [
        ("GET", b"/vm", "GET /vm", {}),
        ("GET", b"/vm/one", "GET /vm/<vm>", {"vm": "one"}),
        ("POST", b"/vm/one/start", "POST /vm/<vm>/start", {"vm": "one"}),
        ("GET", b"/vm/a%2Fb", "GET /vm/<vm>", {"vm": "a/b"}),
        ("GET", b"/vm/a%2Fstart", "GET /vm/<vm>", {"vm": "a/start"}),
        ("GET", b"/vm/%C3%A9+%25", "GET /vm/<vm>", {"vm": "é+%"}),
        ("GET", b"/image/localhost%3A5000%2Fx%3Alatest", "GET /image/<image>", {"image": "localhost:5000/x:latest"}),
        ("GET", b"/image/org%2Fname%40sha256:00", "GET /image/<image>", {"image": "org/name@sha256:00"}),
        ("POST", b"/image/build-tiny", "POST /image/build-tiny", {}),
        ("GET", b"/image/build-tiny", "GET /image/<image>", {"image": "build-tiny"}),
        ("GET", b"/remote/p/vm/v", "GET /remote/<peer>/vm/<vm>", {"peer": "p", "vm": "v"}),
    ],
)
async def test_matches(verb: str, path: bytes, name: str, params: dict[str, str]) -> None:
    assert await match(verb, path) == (name, params)


@pytest.mark.parametrize("path", [b"/", b"/vm/", b"/vm//start", b"/v", b"/vm/a/b", b"/remote//vm/v", b"/VM"])
async def test_nothing_there(path: bytes) -> None:
    with pytest.raises(NotFound):
        await match("GET", path)


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (b"/vm", ["GET", "HEAD", "OPTIONS", "POST"]),
        (b"/vm/one", ["DELETE", "GET", "HEAD", "OPTIONS"]),
        (b"/vm/one/start", ["OPTIONS", "POST"]),
        (b"/image/build-tiny", ["GET", "HEAD", "OPTIONS", "POST"]),
    ],
)
async def test_other_verbs(path: bytes, allow: list[str]) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        await match("PATCH", path)
    assert sorted(caught.value.valid_methods or ()) == allow


@pytest.mark.parametrize("path", [b"vm", b"*", b"http://localhost/vm", b"/vm/%ff", b"/vm/" + b"a" * 9000])
async def test_no_path(path: bytes, tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        status, _, body = await ask(app, "GET", path.decode())
        assert (status, body["code"]) == (400, "invalid_request")


def test_a_route_is_given_once() -> None:
    with pytest.raises(ValueError, match="served twice"):
        app_with("GET /vm", "GET /vm")


# What is served under /api beside the table: streams, uploads, documents and what is asked of the whole fleet.
BESIDE = {
    "GET /api/events", "GET /api/vm/<vm>/console", "GET /api/remote/<peer>/vm/<vm>/console",
    "GET /api/vm/<vm>/screen", "GET /api/remote/<peer>/vm/<vm>/screen", "GET /api/fleet/vm",
    "GET /api/audit", "POST /api/image/import", "POST /api/session", "GET /api/session", "GET /api/sessions",
    "DELETE /api/sessions/<id>", "GET /api/openapi.json", "GET /api/v1/openapi.json",
    *(f"{verb} {root}/vm/<vm>/file" for verb in ("GET", "PUT") for root in ("/api", "/api/remote/<peer>")),
    *(f"GET {root}/vm/<vm>{path}" for path in ("/sessions/<session>/attach", "/ssh", "/dial/<port>")
      for root in ("/api", "/api/remote/<peer>")),
}  # fmt: skip
WEBSOCKETS = {
    f"{root}/vm/<vm>{path}" for path in ("/console", "/screen", "/sessions/<session>/attach", "/ssh", "/dial/<port>")
    for root in ("/api", "/api/remote/<peer>")
}  # fmt: skip


def table() -> Iterator[str]:
    for method in all_methods(SERVICES).values():
        yield f"{method.verb} /api{method.path}"
        if not method.local:
            yield f"{method.verb} /api/remote/<peer>{method.path}"
    for method in all_methods([MedaVms, MedaImages, MedaSystem]).values():
        yield f"{method.verb} /api/v1{method.path}"


async def test_the_applications_url_map_is_the_table(tmp_path: Path) -> None:
    async with open_node(config(tmp_path)) as node:
        app = make_app(node, "http://localhost")
    rules = list(app.url_map.iter_rules())
    served = Counter(
        f"{verb} {rule.rule}"
        for rule in rules
        if not rule.websocket
        for verb in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    )
    assert set(served.values()) == {1}
    assert {one for one in served if " /api" in one} == {*table(), *BESIDE}
    assert {rule.rule for rule in rules if rule.websocket} == WEBSOCKETS
    assert all(rule.endpoint in app.view_functions for rule in rules)


def test_the_application_is_quarts_and_nothing_stands_before_it() -> None:
    assert issubclass(RestApp, QuartTrio)
    assert RestApp.__call__ is Quart.__call__
    assert RestApp.asgi_app is Quart.asgi_app
