"""The border where everything becomes an answer: bugs, bugs half-way, other protocols, verbs without views."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.agent.probe import probe
from tests.api.served import SPEC, served
from twinshare.agent.node import Node
from twinshare.protocols.errors import PeerUnreachable, TwinshareError
from twinshare.protocols.method import Method
from twinshare.protocols.operation import Detached, Operation, OperationState, Progress
from twinshare.protocols.peer import PeerInfo
from twinshare.protocols.vm import Vm, VmStatus

SECRET = "hunter2 in /var/lib/secret"


@pytest.mark.expects_errors
async def test_a_bug_is_answered_with_an_id_that_the_log_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path) as api:

        async def broken(*_: Any) -> None:
            raise RuntimeError(SECRET)

        monkeypatch.setattr(Node, "call", broken)
        answer = await api.client.get("/api/vm")
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "hunter2" not in answer.text
        id = answer.json()["details"]["id"]
        assert id in answer.json()["error"]
        logged = capsys.readouterr().err
        assert id in logged
        assert "RuntimeError" in logged
        monkeypatch.undo()
        assert await api.get("/api/vm") == {"vms": []}


@pytest.mark.expects_errors
async def test_a_bug_in_the_middle_of_a_stream_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as api:
        monkeypatch.setattr("twinshare.api.twinshare.events.encode_event", lambda _: 1 / 0)
        async with api.client.stream("GET", "/api/events") as stream:
            api.node.events.publish(probe("test.x"))
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.aread()
        assert (await api.client.get("/api/vm")).status_code == 200


async def test_websockets_are_refused(tmp_path: Path) -> None:
    upgrade = (
        b"GET /api/events HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with served(tmp_path) as api:
        heard = await trio.to_thread.run_sync(api.raw, upgrade)
        assert heard.startswith(b"HTTP/1.1 404")
        assert b'"code":"not_found"' in heard
        assert (await api.client.get("/api/vm")).status_code == 200


async def test_options_and_head(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        answered = await api.client.options("/api/vm")
        assert (answered.status_code, answered.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        head = await api.client.head("/api/vm")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
        assert (await api.client.head("/api/vm/nope")).status_code == 404


VM = Vm(
    id="vm-789", name="remote-vm", status=VmStatus.RUNNING, cpu_cores=2, memory=2048, disk_size=20, hypervisor="kvm",
    network="default", vnc_port=5900, created_at=datetime(2025, 5, 10, 10, 30, tzinfo=UTC),
)  # fmt: skip
PEERS = [
    PeerInfo(id=id, name=f"node of {id}", address="192.168.1.101", port=8000, status="online", services=["vm"])
    for id in ("near", "slow", "gone")
]


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A node with three peers: one that answers, one that does so late, one that is away. The flags change that."""
    away = {"near": False}
    here = Node.call

    async def call(self: Node, caller: Any, method: Method, arguments: Any, peer: str | None = None) -> Any:
        if method.name == "list_peers":
            return PEERS
        if peer is None:
            return await here(self, caller, method, arguments)
        if peer == "slow":
            await trio.sleep(60)
        if peer == "gone" or away.get(peer):
            raise PeerUnreachable(f"{peer} does not answer")
        return [VM] if method.name == "list_vms" else VM

    monkeypatch.setattr(Node, "call", call)
    monkeypatch.setattr(Node, "peer_id_of", lambda self, peer: peer)
    return away


@pytest.mark.usefixtures("fleet")
async def test_the_bodies_of_remote_operations(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        listed = await api.get("/api/remote/near/vm")
        assert [vm["id"] for vm in listed["vms"]] == ["vm-789"]
        answered = {"success": True, "peer_id": "near", "vm_id": "vm-789", "name": "remote-vm"}
        made = (await api.client.post("/api/remote/near/vm", json=SPEC)).json()
        assert made.items() >= (answered | {"status": "running"}).items()
        started = (await api.client.post("/api/remote/near/vm/vm-789/start")).json()
        assert started.items() >= (answered | {"status": "running"}).items()
        stopped = (await api.client.post("/api/remote/near/vm/vm-789/stop", json={"force": False})).json()
        assert stopped.items() >= answered.items()
        gone = (await api.client.request("DELETE", "/api/remote/near/vm/vm-789", json={"delete_disk": True})).json()
        assert gone.items() >= answered.items()
        away = await api.client.get("/api/remote/gone/vm")
        assert (away.status_code, away.json()["code"]) == (502, "peer_unreachable")


async def test_local_is_this_node(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for name in ("local", api.node.peer_id, "here"):
            assert await api.get(f"/api/remote/{name}/vm") == {"vms": []}
        made = (await api.client.post("/api/remote/local/vm", json=SPEC)).json()
        assert (made["success"], made["peer_id"], made["status"]) == (True, api.node.peer_id, "stopped")
        assert (await api.get(f"/api/vm/{made['vm_id']}"))["name"] == "one"


async def test_where_a_remote_operation_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    operation = Operation(
        id="op-1", kind="create_vm", target="x", node="far", state=OperationState.RUNNING, progress=Progress(),
        created_at=now, updated_at=now, idempotency_key="k",
    )  # fmt: skip

    async def detached(*_: Any, **__: Any) -> None:
        raise Detached(operation)

    async with served(tmp_path) as api:
        monkeypatch.setattr(Node, "call", detached)
        prefer = {"prefer": 'return=minimal, respond-async; wait="5"'}
        answer = await api.client.post("/api/remote/far%20away/vm", json=SPEC, headers=prefer)
        assert (answer.status_code, answer.json()["id"]) == (202, "op-1")
        assert answer.headers["location"] == "/api/remote/far%20away/operations/op-1"


async def test_metrics(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.client.post("/api/vm", json=SPEC)
        await api.client.get("/api/vm/nope")
        text = (await api.client.get("/metrics")).text
        assert 'twinshare_http_requests_total{operation="create_vm",status="200"} 1.0' in text
        assert 'twinshare_http_requests_total{operation="get_vm",status="404"} 1.0' in text
        assert 'twinshare_vms{status="stopped"} 1.0' in text
        assert re.search(r'twinshare_http_request_seconds_bucket\{le="\+Inf",operation="create_vm"\} 1\.0', text)
        assert "process_resident_memory_bytes" in text


async def test_every_error_keeps_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twinshare.protocols.errors import ALL_ERRORS, MethodNotAllowed

    async with served(tmp_path) as api:
        for kind in ALL_ERRORS:
            if kind is MethodNotAllowed:
                continue

            async def fail(*_: Any, error: type[TwinshareError] = kind) -> None:
                raise error("a sentence", vm="x")

            monkeypatch.setattr(Node, "call", fail)
            answer = await api.client.get("/api/vm")
            assert answer.status_code == kind.status
            assert answer.json() == {"error": "a sentence", "code": kind.code, "details": {"vm": "x"}}
