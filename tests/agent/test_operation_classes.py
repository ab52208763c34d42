"""One operation is one class: what a class must say, and rows of the journal that this version does not know."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
import trio

from tests.agent.nodes import config, open_test_node, spec, vms_of
from twinshare.agent.journal import operation
from twinshare.agent.journal.former_requests import convert_former_request
from twinshare.agent.journal.operation import require_complete
from twinshare.agent.open_node import open_node
from twinshare.agent.operations import OPERATIONS
from twinshare.agent.vm.admission import Host
from twinshare.agent.vm.operations.base import ExistingVmOperation
from twinshare.protocols.access import Caller, Role
from twinshare.protocols.errors import IdempotencyMismatch, InsufficientResources
from twinshare.protocols.operation import OperationState
from twinshare.protocols.services import SERVICES, TokenService, VmService
from twinshare.protocols.vm import ForwardSpec

INSERT = "INSERT INTO operations VALUES (?, ?, ?, ?, 'local', ?, ?, '', ?, NULL, NULL, 1, 1)"


def test_every_journalled_method_has_its_class() -> None:
    assert {"create_vm", "pull_image", "add_forward", "add_tunnel", "remove_tunnel"} <= set(OPERATIONS)


def test_a_method_without_its_class_is_a_type_error(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [cls for cls in operation._classes if cls.kind != "pause_vm"]
    monkeypatch.setattr(operation, "_classes", left)
    with pytest.raises(TypeError, match="pause_vm has no class"):
        require_complete(SERVICES)


def test_two_classes_of_one_method_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="carried out by PauseVm already"):
        type("Again", (ExistingVmOperation,), {"method": VmService.pause_vm})


def test_a_method_that_the_journal_does_not_keep_has_no_class() -> None:
    with pytest.raises(TypeError, match="not journalled"):
        type("Tokens", (ExistingVmOperation,), {"method": TokenService.create_token})
    with pytest.raises(TypeError, match="no method of a service"):
        type("Strange", (ExistingVmOperation,), {"method": test_every_journalled_method_has_its_class})


@pytest.mark.parametrize(("kind", "request_"), [("snapshot_vm", {"vm": "one"}), ("start_vm", {"later": 1})])
async def test_what_a_later_version_wrote_is_shown_and_left_alone(tmp_path: Path, kind: str, request_: object) -> None:
    packed = msgspec.msgpack.encode(request_)
    async with open_node(config(tmp_path)) as node:
        file = node.home.database
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(INSERT, ("later", "key", kind, "one", packed, "running", msgspec.msgpack.encode({})))
    async with open_node(config(tmp_path)) as node:
        [found] = await node.operations.list(OperationState.RUNNING)
        assert (found.id, found.kind, found.state) == ("later", kind, OperationState.RUNNING)
    with contextlib.closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT request, state FROM operations WHERE id = 'later'").fetchall()
    assert rows == [(packed, "running")]


async def test_the_same_request_is_compared_by_what_was_asked(tmp_path: Path) -> None:
    caller = Caller(principal="local", role=Role.ADMIN, idempotency_key="key")
    async with open_test_node(tmp_path) as (node, _, _):
        first = await vms_of(node, caller).create_vm(spec())
        assert (await vms_of(node, caller).create_vm(spec(autostart=False, labels={}))).id == first.id
        with pytest.raises(IdempotencyMismatch):
            await vms_of(node, caller).create_vm(spec(autostart=True))


def test_requests_of_the_first_version_are_converted() -> None:
    pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
    assert unpack(convert_former_request("remove_forward", "one", pack(80)) or b"") == {"vm": "one", "host_port": 80}
    assert unpack(convert_former_request("create_vm", "one", pack({"name": "one"})) or b"") == {"spec": {"name": "one"}}
    assert convert_former_request("add_tunnel", "one", pack({"peer": "p"})) is None
    assert convert_former_request("snapshot_vm", "one", pack({})) is None


async def test_forwards_that_are_added_at_once_are_all_kept(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        async with trio.open_nursery() as nursery:
            for port in range(1, 25):
                nursery.start_soon(vms.add_forward, "one", ForwardSpec(host_port=0, guest_port=port))
        assert {each.guest_port for each in await vms.list_forwards("one")} == set(range(1, 25))


async def test_a_restart_of_a_stopped_vm_is_admitted(tmp_path: Path) -> None:
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        node.vms.admission._look = lambda: Host(memory=0, cpus=4, free_disk=100)
        for call in (vms.start_vm, vms.restart_vm):
            with pytest.raises(InsufficientResources):
                await call("one")
