"""A data directory with what only a later version knows: nothing breaks, and nothing is lost."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.golden.test_data import PEER, live
from tests.golden.unpack import unpack


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def write_later(data: Path) -> None:
    """Events, tokens, mesh rows and VMs as a later version may write them, under the same schema number."""
    with closing(sqlite3.connect(data / "twinshare.db")) as db, db:
        event = {
            "id": 100_000,
            "type": "vm.migrated",
            "at": "2026-01-01T00:00:00Z",
            "data": {"to": {"x": 1}},
            "node": "n",
        }
        db.execute("INSERT INTO events VALUES (?, ?)", (event["id"], pack(event)))
        db.execute("INSERT INTO tokens VALUES ('later', x'00', 'auditor', 1e9, NULL, NULL)")
        for kind, key, value in db.execute("SELECT kind, key, value FROM mesh").fetchall():
            if kind in {"ticket", "tunnel", "address"}:
                more = (
                    msgspec.msgpack.decode(value) | {"later": [1]} | ({"role": "auditor"} if kind != "address" else {})
                )
                db.execute("UPDATE mesh SET value = ? WHERE kind = ? AND key = ?", (pack(more), kind, key))
        db.execute("INSERT INTO mesh VALUES ('lease', 'x', x'c0')")
        db.execute("CREATE TABLE leases (id INTEGER PRIMARY KEY) STRICT")
    domains = json.loads((data / "fake.json").read_text())
    for domain in domains:
        domain["metadata"] = json.dumps(json.loads(domain["metadata"]) | {"epoch": 7, "later": {"a": 1}})
    (data / "fake.json").write_text(json.dumps(domains))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = unpack(tmp_path_factory.mktemp("later") / "node")
    write_later(data)
    return data


@pytest.fixture(scope="module")
def seen(data: Path) -> dict[str, Any]:
    return trio.run(live, data)


def test_unknown_roles_allow_the_least(seen: dict[str, Any]) -> None:
    assert {token["name"]: token["role"] for token in seen["tokens"]["tokens"]} == {
        "golden": "operator", "later": "viewer",
    }  # fmt: skip


def test_peers_tunnels_and_events_are_there(seen: dict[str, Any]) -> None:
    assert PEER in {peer["id"] for peer in seen["peers"]["peers"]}
    assert len(seen["tunnels"]["forwards"]) == 1
    assert "vm.migrated" in {event["type"] for event in seen["all events"]}


def test_what_a_later_version_wrote_into_a_vm_stays(seen: dict[str, Any], data: Path) -> None:
    kept = next(each for each in json.loads((data / "fake.json").read_text()) if each["plan"]["name"] == "kept")
    assert json.loads(kept["metadata"])["epoch"] == 7


@pytest.mark.parametrize("name", ["twinshare.db", "images/images.db"])
def test_a_newer_schema_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    data = unpack(tmp_path / "node")
    with closing(sqlite3.connect(data / name)) as db:
        db.execute("PRAGMA user_version = 1000")
    before = (data / name).read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "twinshare", "agent", "--config", str(data / "twinshare.toml"), "--data-dir", str(data)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "later version" in last
    assert name.rpartition("/")[2] in last
    assert "Traceback" not in done.stderr
    assert (data / name).read_bytes() == before
