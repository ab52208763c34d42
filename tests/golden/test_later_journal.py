"""A journal with operations that only a later version knows: they are shown as they are, and left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.golden.test_data import UNDER_WAY, live
from tests.golden.unpack import unpack

LATER = {"later-pending": "pending", "later-running": "running", "later-done": "done", "later-state": "hibernating"}


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def write_later(data: Path) -> None:
    """Operations of an unknown kind in each state, and a known one whose request has a field more."""
    with closing(sqlite3.connect(data / "twinshare.db")) as db, db:
        for id, state in LATER.items():
            result = pack({"to": "far", "took": 3}) if state == "done" else None
            row = (id, f"key-{id}", "migrate_vm", "kept", "local", pack({"vm": "kept", "to": "far"}), state, "copy")
            db.execute(
                "INSERT INTO operations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 1e9, 1e9)", (*row, pack({}), result)
            )
        for key in ("golden-key", *_keys(db, "create-disk", "stop")):
            [(request,)] = db.execute("SELECT request FROM operations WHERE key = ?", (key,)).fetchall()
            found = msgspec.msgpack.decode(request)
            more = found | {"zone": "a"} if isinstance(found, dict) else [*found, "a"]
            db.execute("UPDATE operations SET request = ? WHERE key = ?", (pack(more), key))


def _keys(db: sqlite3.Connection, *targets: str) -> list[str]:
    found = "SELECT key FROM operations WHERE target = ? AND state = 'running'"
    return [key for target in targets for (key,) in db.execute(found, (target,))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = unpack(tmp_path_factory.mktemp("later") / "node")
    write_later(data)
    return data


@pytest.fixture(scope="module")
def seen(data: Path) -> dict[str, Any]:
    return trio.run(live, data, list(LATER))


def test_operations_of_unknown_kinds_are_shown_and_left_alone(seen: dict[str, Any], data: Path) -> None:
    found = {each["id"]: each for each in seen["operations"]["operations"]}
    for id, state in LATER.items():
        assert (found[id]["kind"], found[id]["target"]) == ("migrate_vm", "kept")
        assert found[id]["state"] == ("unknown" if state == "hibernating" else state)
    assert found["later-done"]["result"] == {"to": "far", "took": 3}
    with closing(sqlite3.connect(data / "twinshare.db")) as db:
        kept = dict(db.execute("SELECT id, state FROM operations WHERE kind = 'migrate_vm'").fetchall())
    assert kept == LATER


def test_operations_that_this_version_knows_go_on(seen: dict[str, Any]) -> None:
    vms = {vm["name"]: vm for vm in seen["vms"]["vms"]}
    assert seen["again"]["id"] == vms["kept"]["id"], "a request with a field more is the same request"
    assert set(vms) == {"kept", "cancelled"} | {name for name, (_, status) in UNDER_WAY.items() if status}
