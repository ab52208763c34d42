"""A node that answers from a script: real sockets, so that connections can be cut in every way a network cuts them.

Each route has a list of answers; the last one is repeated. `seen` holds what was asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VM = {
    "id": "0f6e1c1e-6f0e-5d7b-9a51-8c3f5d6f7a10",
    "name": "example-vm",
    "status": "running",
    "cpu_cores": 2,
    "memory": 2048,
    "disk_size": 20,
    "hypervisor": "kvm",
    "network": "default",
    "vnc_port": 5900,
    "created_at": "2025-05-10T10:30:00Z",
    "uptime": 3600,
}
STARTED = {"success": True, "name": "example-vm", "status": "running", "vnc_port": 5900, "vm": VM}


def operation(state: str, **fields: Any) -> dict[str, Any]:
    """One operation as a node tells it."""
    return {
        "id": "op-1",
        "kind": "start_vm",
        "target": "example-vm",
        "node": "node-1",
        "state": state,
        "progress": {"done": 1, "total": 2, "unit": "steps", "message": "booting"},
        "created_at": "2025-05-10T10:30:00Z",
        "updated_at": "2025-05-10T10:30:00Z",
        "idempotency_key": "k",
        **fields,
    }


@dataclass
class Answer:
    """`cut` closes the connection after that many bytes of the body; 0 closes it without an answer."""

    body: Any = None
    status: int = 200
    media_type: str = "application/json"
    cut: int | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Seen:
    verb: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RecordedNode:
    routes: dict[str, list[Answer]]
    url: str = ""
    seen: list[Seen] = field(default_factory=list)

    def next_answer(self, route: str) -> Answer:
        answers = self.routes.get(route)
        if not answers:
            return Answer({"error": f"no route {route}", "code": "not_found"}, 404)
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _handler(node: RecordedNode) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b"".join(self.chunks())
            headers = {name.lower(): value for name, value in self.headers.items()}
            node.seen.append(Seen(self.command, self.path, headers, body))
            answer = node.next_answer(f"{self.command} {self.path.partition('?')[0]}")
            self.close_connection = answer.cut is not None
            if answer.cut == 0:
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type)
            if answer.cut is None or answer.media_type == "application/json":
                self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content[: answer.cut])

        do_GET = do_POST = do_DELETE = do_PATCH = answer  # noqa: N815 - the base class asks for these names

        def chunks(self) -> Iterator[bytes]:
            while self.headers.get("Transfer-Encoding") == "chunked":
                size = int(self.rfile.readline(), 16)
                yield self.rfile.read(size)
                self.rfile.readline()
                if not size:
                    return

        def log_message(self, *args: Any) -> None:
            """A test prints nothing."""

    return Handler


@contextmanager
def recorded_node(routes: dict[str, list[Answer]]) -> Iterator[RecordedNode]:
    node = RecordedNode(routes)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(node))
    node.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
