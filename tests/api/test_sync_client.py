"""The blocking RESTClient against scripted nodes, and the keywords of both clients."""

from pathlib import Path

import msgspec
import pytest

from tests.api.recorded import STARTED, VM, Answer, operation, recorded_node
from twinshare.api import rest_client
from twinshare.api.call_fields import CloudInitFields, VmFields
from twinshare.api.sync import NodeUnreachable, RESTClient
from twinshare.protocols.bodies import VmStarted
from twinshare.protocols.errors import InvalidRequest, VmExists
from twinshare.protocols.vm import CloudInit, VmSpec


def test_the_guide_without_a_loop() -> None:
    routes = {
        "GET /api/vm": [Answer({"vms": [VM]})],
        "POST /api/vm": [Answer(VM)],
        "POST /api/vm/example-vm/start": [Answer(STARTED)],
        "GET /api/remote/alice/vm": [Answer({"vms": [VM]})],
    }
    with recorded_node(routes) as node, RESTClient(node.url, token="secret") as client:
        assert [vm.name for vm in client.list_vms()] == ["example-vm"]
        assert client.create_vm("example-vm", "tiny", memory=512, cloud_init={"hostname": "b"}).id == VM["id"]
        assert isinstance(client.start_vm("example-vm"), VmStarted)
        assert client.list_remote_vms("alice")[0].name == "example-vm"
        assert client.call("start_vm", {"vm": "example-vm"}).id == VM["id"]
        with pytest.raises(InvalidRequest) as raised:
            client.create_vm("Not A Name", "tiny")
    assert "name" in raised.value.message
    assert node.seen[1].json == {
        "name": "example-vm", "image": "tiny", "memory": 512, "cloud_init": {"hostname": "b"},
    }  # fmt: skip
    assert {seen.headers["authorization"] for seen in node.seen} == {"Bearer secret"}


def test_a_mutation_is_repeated_under_its_key() -> None:
    answers = [Answer(cut=0), Answer(VM, cut=20), Answer(VM)]
    with recorded_node({"POST /api/vm": answers}) as node, RESTClient(node.url) as client:
        client.create_vm("example-vm", "tiny")
    assert len(node.seen) == 3
    assert len({seen.headers["idempotency-key"] for seen in node.seen}) == 1


def test_operations_and_errors() -> None:
    routes = {
        "POST /api/vm/a/start": [Answer(operation("running"), 202)],
        "GET /api/operations/op-1/wait": [
            Answer(operation("running")),
            Answer(operation("failed", error={"error": "taken", "code": "vm_exists"})),
        ],
    }
    with recorded_node(routes) as node, RESTClient(node.url) as client, pytest.raises(VmExists, match="taken"):
        client.wait(client.begin("start_vm", {"vm": "a"}))
    with RESTClient("http://127.0.0.1:1") as client, pytest.raises(NodeUnreachable, match="is it running"):
        client.list_vms()


def test_an_image_is_sent_as_a_stream(tmp_path: Path) -> None:
    image = {"name": "tiny", "tag": "latest", "digest": "d", "size": 1, "allocated": 1, "created_at": VM["created_at"]}
    (tmp_path / "disk").write_bytes(b"x" * 600_000)
    with recorded_node({"POST /api/image/import": [Answer(image)]}) as node, RESTClient(node.url) as client:
        assert client.import_image("tiny:latest", tmp_path / "disk").tag == "latest"
    assert len(node.seen[0].body) == 600_000


def test_the_keywords_are_the_fields() -> None:
    for keywords, struct in ((VmFields, VmSpec), (CloudInitFields, CloudInit)):
        fields = {field.name for field in msgspec.structs.fields(struct)} - {"name", "image"}
        assert set(keywords.__annotations__) == fields


def test_both_clients_have_the_same_calls() -> None:
    streams_and_stubs = {"vms", "images", "operations", "node", "tokens", "peers", "guests", "events", "console"} | {
        "attach_session"
    }
    public = {name for name in dir(rest_client.RESTClient) if not name.startswith("_")}
    assert public - streams_and_stubs == {name for name in dir(RESTClient) if not name.startswith("_")} - {"close"}
