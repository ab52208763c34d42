"""A damaged database: what can be read is kept, the rest is named, and the node starts with its VMs and images."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.agent.nodes import config, images_of, spec, vms_of
from twinshare.agent.database import DatabaseDamaged
from twinshare.agent.home import locked_home
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.open_node import open_node
from twinshare.agent.repair import repair
from twinshare.api.cli import main
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.node import TokenRequest


def damage(database: Path, table: str) -> None:
    """Overwrite the first page of a table, and whatever waits in the write-ahead log is in the file before."""
    with closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    with database.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


async def test_a_node_starts_with_its_vms_images_and_tokens_after_a_repair(tmp_path: Path) -> None:
    home = tmp_path / "node"
    made = config(home)
    made = msgspec.structs.replace(
        made, hypervisor=msgspec.structs.replace(made.hypervisor, uri=f"fake://{home}/f.json")
    )
    async with open_node(made) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        await vms_of(node).create_vm(spec())
        await node.tokens.create(TokenRequest(name="kept", role=Role.VIEWER))
    damage(home / "twinshare.db", "events")
    with pytest.raises(DatabaseDamaged, match="twinshare repair"):
        async with open_node(made):
            pass
    done = CliRunner().invoke(main, ["repair", "--data-dir", str(home)])
    assert done.exit_code == 0, done.output
    assert "lost: events" in done.output
    assert list(home.glob("twinshare.db.damaged-*Z"))
    async with open_node(made) as node:
        assert [vm.name for vm in await vms_of(node).list_vms()] == ["one"]
        assert [image.name for image in await images_of(node).list_images()] == ["disk"]
        assert [token.name for token in node.tokens.list()] == ["kept"]


def test_the_audit_log_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "db"
    with closing(sqlite3.connect(file)) as db:
        for table in ("audit", "audit_ends", "tokens"):
            db.execute(f"CREATE TABLE {table} (a TEXT)")
            db.executemany(f"INSERT INTO {table} VALUES (?)", [("x" * 100,)] * 100)  # noqa: S608 - names above
        db.commit()
    damage(file, "audit_ends")
    done = repair(file)
    assert done is not None
    assert (done.kept, done.lost) == (["tokens"], ["audit", "audit_ends"])
    assert repair(file) is None, "it is sound now"


def test_what_is_no_database_is_put_aside(tmp_path: Path) -> None:
    file = tmp_path / "db"
    file.write_bytes(b"no database" * 1000)
    done = repair(file)
    assert done is not None
    assert done.damaged.read_bytes() == b"no database" * 1000
    assert file.read_bytes() == b""


def test_a_node_that_runs_is_not_repaired(tmp_path: Path) -> None:
    with locked_home(tmp_path):
        done = CliRunner().invoke(main, ["repair", "--data-dir", str(tmp_path)])
    assert done.exit_code == 1
    assert "stop it" in done.output
