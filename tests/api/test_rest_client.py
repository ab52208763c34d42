"""RESTClient against scripted nodes, under asyncio and under trio."""

import asyncio
import gc
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.api.recorded import STARTED, VM, Answer, operation, recorded_node
from twinshare.api import retry
from twinshare.api.rest_client import NodeUnreachable, RESTClient
from twinshare.protocols.bodies import VmStarted
from twinshare.protocols.errors import (
    ALL_ERRORS,
    DeadlineExceeded,
    Forbidden,
    HypervisorDown,
    InvalidRequest,
    NotFound,
    TwinshareError,
    VmExists,
)
from twinshare.protocols.vm import Blob, CloudInit, VmStatus

Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    def under_asyncio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(main())

    return trio.run if request.param == "trio" else under_asyncio


def ask(run: Run, url: str, what: Callable[[RESTClient], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with RESTClient(url, **options) as client:
            return await what(client)

    return run(main)


def test_the_guide_as_written(run: Run) -> None:
    routes = {
        "GET /api/vm": [Answer({"vms": [VM]})],
        "POST /api/vm": [Answer(VM | {"status": "stopped", "vnc_port": None})],
        "GET /api/vm/example-vm": [Answer(VM)],
        "POST /api/vm/example-vm/start": [Answer(STARTED)],
    }

    async def main(client: RESTClient) -> None:
        assert [vm.name for vm in await client.list_vms()] == ["example-vm"]
        made = await client.create_vm(
            name="example-vm",
            image="ubuntu-20.04",
            cpu_cores=1,
            memory=512,
            disk_size=3,
            cloud_init={"hostname": "b"},
        )
        assert made.status is VmStatus.STOPPED
        assert (await client.get_vm_status("example-vm")).uptime == 3600
        started = await client.start_vm("example-vm")
        assert isinstance(started, VmStarted)
        assert (started.success, started.name, started.status, started.vnc_port) == (
            True,
            "example-vm",
            "running",
            5900,
        )
        assert (await client.vms().start_vm("example-vm")).id == VM["id"]

    with recorded_node(routes) as node:
        ask(run, node.url, main, token="secret")
    assert node.seen[1].json == {
        "name": "example-vm",
        "image": "ubuntu-20.04",
        "cpu_cores": 1,
        "memory": 512,
        "disk_size": 3,
        "cloud_init": {"hostname": "b"},
    }
    assert {seen.headers["authorization"] for seen in node.seen} == {"Bearer secret"}
    assert [len(seen.headers.get("idempotency-key", "")) for seen in node.seen] == [0, 32, 0, 32, 32]


def test_calls_for_a_peer_go_below_its_name(run: Run) -> None:
    changed = {"success": True, "peer_id": "peer-456", "vm_id": VM["id"], "name": "example-vm", "status": "running"}
    routes = {
        "GET /api/remote/a%2Fb/vm": [Answer({"vms": [VM]})],
        "POST /api/remote/a%2Fb/vm/example-vm/start": [Answer(changed | {"vm": VM})],
    }

    async def main(client: RESTClient) -> None:
        assert (await client.list_remote_vms("a/b"))[0].name == "example-vm"
        assert (await client.start_remote_vm("a/b", "example-vm")).peer_id == "peer-456"
        assert (await client.vms("a/b").start_vm("example-vm")).vnc_port == 5900
        with pytest.raises(InvalidRequest, match="takes no peer"):
            await client.call("list_tokens", peer="a/b")

    with recorded_node(routes) as node:
        ask(run, node.url, main)


@pytest.mark.parametrize("kind", ALL_ERRORS, ids=lambda kind: kind.code)
def test_each_error_is_raised_as_itself(kind: type[TwinshareError]) -> None:
    body = {"error": "a sentence", "code": kind.code, "details": {"path": "x"}}
    with recorded_node({"GET /api/vm": [Answer(body, kind.status)]}) as node, pytest.raises(kind) as raised:
        ask(trio.run, node.url, lambda client: client.list_vms())
    assert type(raised.value) is kind
    assert (raised.value.message, raised.value.details) == ("a sentence", {"path": "x"})


def test_an_error_that_a_proxy_wrote_falls_back_to_its_status(run: Run) -> None:
    with (
        recorded_node({"GET /api/vm": [Answer(b"<html>", 403, "text/html")]}) as node,
        pytest.raises(Forbidden, match="HTTP 403"),
    ):
        ask(run, node.url, lambda client: client.list_vms())


def test_another_server_is_not_taken_for_a_node(run: Run) -> None:
    with (
        recorded_node({"GET /api/vm": [Answer(b"<html>", 200, "text/html")]}) as node,
        pytest.raises(NodeUnreachable, match="not a twinshare node"),
    ):
        ask(run, node.url, lambda client: client.list_vms())


def test_a_wrong_field_is_refused_before_it_is_sent(run: Run) -> None:
    async def main(client: RESTClient) -> None:
        with pytest.raises(InvalidRequest) as raised:
            await client.create_vm("Not A Name", "tiny")
        assert "name" in raised.value.message
        with pytest.raises(InvalidRequest, match="colour"):
            await client.create_vm("a", "tiny", colour="red")  # type: ignore[call-arg]  # the checker sees it, too
        with pytest.raises(InvalidRequest) as raised:
            await client.create_vm("a", "tiny", memory="much")  # type: ignore[arg-type]  # the checker sees it, too
        assert raised.value.details == {"path": "memory"}

    with recorded_node({}) as node:
        ask(run, node.url, main)
    assert node.seen == []


def test_nobody_there(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NodeUnreachable, match="is it running"):
        ask(run, url, lambda client: client.list_vms())


def test_a_silent_node_is_given_up(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeadlineExceeded, match="in time"):
        ask(
            run,
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            lambda client: client.list_vms(),
            timeout=0.1,
        )


def test_a_mutation_is_repeated_under_its_key(run: Run) -> None:
    with recorded_node({"POST /api/vm": [Answer(cut=0), Answer(VM, cut=20), Answer(VM)]}) as node:
        vm = ask(run, node.url, lambda client: client.create_vm("example-vm", "tiny"))
    assert vm.name == "example-vm"
    assert len(node.seen) == 3
    assert len({seen.headers["idempotency-key"] for seen in node.seen}) == 1
    assert len({seen.body for seen in node.seen}) == 1


def test_a_refusal_is_not_repeated(run: Run) -> None:
    taken = Answer({"error": "taken", "code": "vm_exists"}, 409)
    with recorded_node({"POST /api/vm": [taken, Answer(VM)]}) as node, pytest.raises(VmExists):
        ask(run, node.url, lambda client: client.create_vm("example-vm", "tiny"))
    assert len(node.seen) == 1


def test_a_node_that_says_it_stops_is_waited_for(run: Run) -> None:
    stopping = Answer({"error": "the node is stopping; try again when it is back", "code": "unavailable"}, 503)
    with recorded_node({"POST /api/vm": [stopping, Answer(cut=0), Answer(VM)]}) as node:
        assert ask(run, node.url, lambda client: client.create_vm("example-vm", "tiny")).name == "example-vm"
    assert len({seen.headers["idempotency-key"] for seen in node.seen}) == 1


def test_what_is_down_for_longer_is_reported_at_once(run: Run) -> None:
    down = Answer({"error": "libvirt does not answer", "code": "hypervisor_down"}, 503)
    with recorded_node({"POST /api/vm": [down, Answer(VM)]}) as node, pytest.raises(HypervisorDown):
        ask(run, node.url, lambda client: client.create_vm("example-vm", "tiny"))
    assert len(node.seen) == 1


def test_a_node_that_stays_away_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETURN_WITHIN", 0.4)
    with recorded_node({"GET /api/vm": [Answer(cut=0)]}) as node, pytest.raises(NodeUnreachable):
        ask(run, node.url, lambda client: client.list_vms())
    assert len(node.seen) == 3


def test_a_call_can_go_on_as_an_operation(run: Run) -> None:
    routes = {
        "POST /api/vm/example-vm/start": [Answer(operation("running"), 202)],
        "GET /api/operations/op-1/wait": [Answer(operation("running")), Answer(operation("done", result=VM))],
    }

    async def main(client: RESTClient) -> None:
        begun = await client.begin("start_vm", {"vm": "example-vm"}, idempotency_key="mine")
        assert begun.progress.message == "booting"
        vm = await client.wait(begun)
        assert (vm.status, vm.created_at.year) == (VmStatus.RUNNING, 2025)

    with recorded_node(routes) as node:
        ask(run, node.url, main)
    assert (node.seen[0].headers["prefer"], node.seen[0].headers["idempotency-key"]) == ("respond-async", "mine")
    assert [seen.target for seen in node.seen[1:]] == ["/api/operations/op-1/wait?timeout=10.0"] * 2


def test_the_error_that_ended_an_operation_is_raised(run: Run) -> None:
    failed = operation("failed", error={"error": "taken", "code": "vm_exists"})
    with (
        recorded_node({"GET /api/operations/op-1/wait": [Answer(failed)]}) as node,
        pytest.raises(VmExists, match="taken"),
    ):
        ask(run, node.url, lambda client: client.wait("op-1"))


def test_a_wait_has_an_end(run: Run) -> None:
    with (
        recorded_node({"GET /api/operations/op-1/wait": [Answer(operation("running"))]}) as node,
        pytest.raises(DeadlineExceeded, match="goes on"),
    ):
        ask(run, node.url, lambda client: client.wait("op-1", timeout=15))
    assert [seen.target.partition("=")[2] for seen in node.seen] == ["10.0", "5.0"]


def test_a_picture_is_bytes(run: Run) -> None:
    with recorded_node({"GET /api/vm/a/screenshot": [Answer(b"\x89PNG", 200, "image/png")]}) as node:
        found = ask(run, node.url, lambda client: client.vms().vm_screenshot("a"))
    assert found == Blob(media_type="image/png", data=b"\x89PNG")


def test_an_image_is_sent_as_a_stream(run: Run, tmp_path: Path) -> None:
    image = {"name": "tiny", "tag": "latest", "digest": "d", "size": 1, "allocated": 1, "created_at": VM["created_at"]}
    (tmp_path / "disk").write_bytes(b"x" * 600_000)
    with recorded_node({"POST /api/image/import": [Answer(image)]}) as node:
        made = ask(run, node.url, lambda client: client.import_image("tiny:latest", tmp_path / "disk"))
    assert made.tag == "latest"
    assert node.seen[0].target == "/api/image/import?name=tiny%3Alatest"
    assert len(node.seen[0].body) == 600_000


def test_cloud_init_is_content() -> None:
    def make(cloud_init: Any) -> None:
        ask(trio.run, node.url, lambda client: client.create_vm("a", "tiny", cloud_init=cloud_init))

    with recorded_node({}) as node:
        with pytest.raises(InvalidRequest, match="not a path"):
            make({"user_data": "/etc/passwd"})
        with pytest.raises(NotFound):
            make(CloudInit(hostname="h"))
    assert node.seen[0].json["cloud_init"] == {"hostname": "h"}


def test_importing_the_client_brings_no_loop_with_it() -> None:
    code = (
        "import sys, twinshare.api.rest_client\n"
        "print([name for name in ('trio', 'libp2p', 'quart', 'libvirt') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


class _Cut(httpx.AsyncBaseTransport):
    """A connection that breaks in the middle of what is sent."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for _ in request.stream:
            raise httpx.WriteError("cut")
        raise AssertionError("there was nothing to send")


async def test_a_request_that_is_cut_off_leaves_no_generator_open() -> None:
    async with RESTClient(transport=_Cut()) as client:
        with trio.move_on_after(0.1):
            await client.list_vms()
    gc.collect()
