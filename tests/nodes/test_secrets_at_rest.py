"""Secrets of a request are in no file of the node once its operation has ended; a login of the caller's never is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.agent import remote as registries
from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, open_fleet, open_node_on
from twinshare.agent.database import Database
from twinshare.agent.images.contract_samples import raw_disk
from twinshare.agent.node import Node
from twinshare.agent.p2p.memory import MemoryNetwork
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Forbidden, IdempotencyMismatch, TwinshareError
from twinshare.protocols.image import PullRequest, PushRequest, RegistryCredentials
from twinshare.protocols.vm import CloudInit

CANARY = "canary-f4b1c9"
USER_DATA = f"#cloud-config\npassword: {CANARY}\n"
OWN = RegistryCredentials(registry="registry.example", username="ann", password=CANARY)


def found_in(folder: Path) -> list[str]:
    """The files that hold the canary; a VM's own seed does, for its guest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "seed.iso")
    return [str(path.relative_to(folder)) for path in files if CANARY.encode() in path.read_bytes()]


async def test_user_data_leaves_the_journal_with_the_end_of_its_operation(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        secret = CloudInit(user_data=USER_DATA, network_config=f"version: 2\n# {CANARY}\n", hostname="web")
        made = await call(a, "create_vm", spec=spec("here", cloud_init=secret))
        await call(b, "create_vm", "node-0", spec=spec("far", cloud_init=secret))
        with pytest.raises(TwinshareError):
            await call(b, "create_vm", "node-0", spec=spec("far", cloud_init=secret))
        for node in (a, b):
            assert found_in(node.home.path) == []
        assert (await call(a, "get_vm", vm="here")).id == made.id


async def test_only_what_had_secrets_empties_the_log_of_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions wait while it is emptied; a member that creates and deletes VMs did that again and again."""
    erased, erase_deleted = 0, Database.erase_deleted

    async def counting(database: Database) -> None:
        nonlocal erased
        erased += 1
        await erase_deleted(database)

    async with open_node_on(MemoryNetwork(), tmp_path, "node") as a:
        monkeypatch.setattr(Database, "erase_deleted", counting)
        await call(a, "create_vm", spec=spec("open"))
        assert erased == 0
        await call(a, "create_vm", spec=spec("secret", cloud_init=CloudInit(user_data=USER_DATA)))
        assert erased == 1


async def test_what_a_peer_sends_stays_secret_in_the_audit_log_however_it_is_refused(tmp_path: Path) -> None:
    async with open_fleet(tmp_path, Role.VIEWER) as (_, (a, b)):
        asked = spec("far", cloud_init=CloudInit(user_data=USER_DATA))
        with pytest.raises(Forbidden):
            await call(b, "create_vm", "node-0", spec=asked)
        await msgpack_call(b, {"spec": msgspec.to_builtins(asked) | {"memory": "much"}})
        assert found_in(a.home.path) == []


async def msgpack_call(node: Node, arguments: dict[str, Any]) -> None:
    """Send arguments that are no spec."""
    method = node.dispatcher.table["create_vm"]
    loose = msgspec.structs.replace(method, args=msgspec.defstruct("Loose", [("spec", dict[str, Any])]))
    with pytest.raises(TwinshareError):
        await node.mesh.call("node-0", loose, arguments, LOCAL_ADMIN)


async def test_a_repeated_request_is_known_by_its_secrets_as_well(tmp_path: Path) -> None:
    keyed = Caller(principal="local", role=Role.ADMIN, idempotency_key="once")
    for restarts in (False, True):
        name = f"node-{restarts}"
        async with open_node_on(MemoryNetwork(), tmp_path, name) as a:
            secret = spec("here", cloud_init=CloudInit(user_data=USER_DATA))
            made = await call(a, "create_vm", None, keyed, spec=secret)
            await repeated(a, keyed, made.id)
        if restarts:
            async with open_node_on(MemoryNetwork(), tmp_path, name) as a:
                await repeated(a, keyed, made.id)


async def repeated(node: Node, keyed: Caller, id: str) -> None:
    again = await call(node, "create_vm", None, keyed, spec=spec("here", cloud_init=CloudInit(user_data=USER_DATA)))
    assert again.id == id
    for other in (CloudInit(user_data="#cloud-config\n"), CloudInit(user_data=USER_DATA, hostname="x"), None):
        with pytest.raises(IdempotencyMismatch):
            await call(node, "create_vm", None, keyed, spec=spec("here", cloud_init=other))


async def test_a_login_of_the_caller_is_never_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = registries.install(monkeypatch)
    there.contents["registry.example/web:v1"] = raw_disk(3)
    there.close()
    wanted = PullRequest(image="registry.example/web:v1", credentials=OWN)
    async with open_fleet(tmp_path, Role.OPERATOR) as (_, (a, b)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: call(b, "pull_image", "node-0", request=wanted))
            await there.begun.wait()
            for node in (a, b):
                assert found_in(node.home.path) == [], "while it is at work"
            there.opened.set()
        target = PushRequest(image=wanted.image, target="registry.example/x:1", credentials=OWN)
        await call(b, "push_image", "node-0", request=target)
        for node in (a, b):
            assert found_in(node.home.path) == []
    assert CANARY not in repr(wanted)


async def test_what_former_versions_wrote_is_erased_at_the_first_start(tmp_path: Path) -> None:
    async with open_node_on(MemoryNetwork(), tmp_path, "node-0") as a:
        await call(a, "create_vm", spec=spec("old", cloud_init=CloudInit(hostname="x")))
        database = a.home.database
    written = spec("old", cloud_init=CloudInit(user_data=USER_DATA, hostname="x"))
    with closing(sqlite3.connect(database)) as db, db:
        [(id, notes)] = db.execute("SELECT id, notes FROM operations WHERE kind = 'create_vm'")
        former = {name: value for name, value in msgspec.msgpack.decode(notes).items() if name != "secrets"}
        row = (msgspec.msgpack.encode({"spec": written}), msgspec.msgpack.encode(former), id)
        db.execute("UPDATE operations SET request = ?, notes = ? WHERE id = ?", row)
        db.execute("DELETE FROM facts WHERE name LIKE 'journal%'")
    assert found_in(tmp_path) != []
    async with open_node_on(MemoryNetwork(), tmp_path, "node-0"):
        assert found_in(tmp_path) == []
