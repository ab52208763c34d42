"""The application as ASGI, without a socket: bodies in pieces, clients of every kind, hang-ups."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import trio
from werkzeug.datastructures import Headers

from tests.api.served import SPEC, config
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.open_node import open_node
from twinshare.api.app import make_app
from twinshare.api.rest.application import RestApp
from twinshare.api.rest.connection_info import ConnectionInfo
from twinshare.protocols.access import LOCAL_ADMIN

OWNER = ConnectionInfo(address="127.0.0.1", source="uid 0", local=LOCAL_ADMIN)
BODY = json.dumps(SPEC).encode()
JSON = {"content-type": "application/json"}


@asynccontextmanager
async def application(data_dir: Path, **api: Any) -> AsyncIterator[RestApp]:
    async with open_node(config(data_dir, **api)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        yield make_app(node, "http://localhost")


async def ask(
    app: RestApp,
    verb: str,
    path: str,
    parts: Iterable[bytes] = (),
    *,
    connection: ConnectionInfo = OWNER,
    cut: bool = False,
    **more: Any,
) -> tuple[int, dict[bytes, bytes], Any]:
    """One request; `cut` hangs up instead of ending the body. Returns status, headers and the decoded body."""
    headers = {"host": "localhost", **more.get("headers", {})}
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    waiting.append({"type": "http.disconnect"} if cut else {"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return waiting.pop(0) if waiting else await trio.sleep_forever()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": verb, "scheme": "http", "http_version": "1.1", "query_string": b"",
        "path": unquote(path), "raw_path": path.encode(), "state": {"connection": connection},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]  # hypercorn's TypedDicts of the same
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body) if body else None


CHUNKED = {**JSON, "transfer-encoding": "chunked"}


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([BODY], 200),
        ([bytes([byte]) for byte in BODY], 200),
        ([b"", BODY[:10], b"", BODY[10:], b""], 200),
        ([], 400),
        ([BODY, b"x"], 400),
        ([b" " * 65536] * 15 + [BODY], 200),
        ([b" " * 65536] * 17, 413),
    ],
)
async def test_a_body_in_pieces(parts: list[bytes], status: int, tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        got, _, body = await ask(app, "POST", "/api/vm", parts, headers=CHUNKED)
        assert got == status, body


async def test_a_body_that_is_cut_off(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        status, _, body = await ask(app, "POST", "/api/vm", [BODY[:10]], headers=CHUNKED, cut=True)
        assert (status, body["code"]) == (400, "invalid_request")
        assert (await ask(app, "GET", "/api/vm"))[2] == {"vms": []}


@pytest.mark.parametrize("said", [1 << 20, (1 << 20) + 1])
async def test_a_length_that_is_only_said(said: int, tmp_path: Path) -> None:
    """Too long a body is refused before any of it is read."""
    async with application(tmp_path) as app:
        headers = {**JSON, "content-length": str(said)}
        status, answered, _ = await ask(app, "POST", "/api/vm", [b"{"], headers=headers)
        assert status == (413 if said > 1 << 20 else 400)
        assert (answered.get(b"connection") == b"close") is (said > 1 << 20)


CLIENTS = {
    "another user": ConnectionInfo(address="127.0.0.1", source="uid 1000"),
    "another machine": ConnectionInfo(address="192.0.2.1", source="192.0.2.1"),
    "a guest": ConnectionInfo(address="127.0.0.1", source="uid 0"),
}


@pytest.mark.parametrize("connection", CLIENTS.values(), ids=CLIENTS.keys())
async def test_who_needs_a_token(connection: ConnectionInfo, tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        status, headers, body = await ask(app, "POST", "/api/vm", [BODY], headers=CHUNKED, connection=connection)
        assert (status, body["code"]) == (401, "unauthenticated")
        assert headers[b"www-authenticate"].startswith(b"Bearer")
        token = (tmp_path / "admin.token").read_text().strip()
        allowed = {**CHUNKED, "authorization": f"Bearer {token}"}
        assert (await ask(app, "POST", "/api/vm", [BODY], headers=allowed, connection=connection))[0] == 200


async def test_one_source_cannot_use_up_anothers_share(tmp_path: Path) -> None:
    async with application(tmp_path, rate=1.0, burst=5) as app:
        stranger = CLIENTS["another machine"]
        codes = [(await ask(app, "GET", "/api/vm", connection=stranger))[0] for _ in range(7)]
        assert codes == [401] * 5 + [429] * 2
        assert (await ask(app, "GET", "/api/vm"))[0] == 200
        assert (await ask(app, "GET", "/api/vm", connection=CLIENTS["another user"]))[0] == 401


async def test_a_header_that_comes_twice(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        twice = Headers([("host", "localhost"), ("origin", "http://localhost"), ("origin", "https://evil.example")])
        client = app.test_client()
        answer = await client.post("/api/p2p/start", headers=twice, scope_base={"state": {"connection": OWNER}})
        assert answer.status_code == 400
