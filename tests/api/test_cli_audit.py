"""`twinshare audit` on the files of a node, beside its agent and without it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.agent.nodes import open_test_node, spec
from tests.agent.test_audit import call
from twinshare.api.cli import main


def audit(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["audit", *arguments], env={"TWINSHARE_DATA_DIR": str(folder)})


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    async with open_test_node(tmp_path) as (node, _, _):
        await call(node, "create_vm", spec=spec("web"))
        assert audit(tmp_path, "verify").exit_code == 0, "while the agent runs"
    return tmp_path


async def test_the_rows_are_a_table_or_one_json_document(folder: Path) -> None:
    table = audit(folder, "ls").stdout.splitlines()
    assert table[0].split() == ["ROW", "AT", "WHO", "WHAT", "ON", "AT", "PEER", "OUTCOME", "CALL"]
    assert table[1].split()[3:6] == ["local", "import_image", "disk"]
    assert "(begins)" in table[1]
    rows = json.loads(audit(folder, "ls", "-n", "2", "--json").stdout)
    assert [(row["what"], row["on"], row["outcome"]) for row in rows] == [("create_vm", "web", "done")] * 2
    assert rows[1]["row"] == rows[0]["row"] + 1 == len(table) - 1


async def test_a_whole_log_is_reported_with_what_to_keep(folder: Path) -> None:
    first = audit(folder, "verify")
    assert first.exit_code == 0, first.stderr
    seen = first.stdout.splitlines()[-1]
    assert audit(folder, "verify", "--seen", seen).exit_code == 0
    checked = json.loads(audit(folder, "verify", "--json").stdout)
    assert (checked["rows"], checked["seen"]) == (checked["last"], seen)
    other = "12D3KooWMiB9fwYMXZ4CjqTuoqAdCAW6XEj6Vqh3dtZrPcDJvyNn"
    assert "not signed by this node" in audit(folder, "verify", "--peer-id", other).stderr


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("UPDATE audit SET content = x'00' WHERE number = 2", "row 2 was changed"),
        ("DELETE FROM audit WHERE number = 3", "row 3 is missing"),
        ("DELETE FROM audit WHERE number > 3", "ends with row 3, and should with row 5"),
        ("UPDATE audit_ends SET number = 4", "the head was not signed by this node"),
    ],
)
async def test_what_is_not_whole_is_one_line_and_exit_code_1(folder: Path, harm: str, said: str) -> None:
    with sqlite3.connect(folder / "twinshare.db") as db:
        db.execute(harm)
    db.close()
    result = audit(folder, "verify")
    assert result.exit_code == 1
    assert said in result.stderr
    assert "cannot be trusted" in result.stderr


def test_wrong_usage_and_no_node(tmp_path: Path) -> None:
    assert audit(tmp_path, "verify", "--seen", "7").exit_code == 2
    for command in ("ls", "verify"):
        result = audit(tmp_path, command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "there is no node's audit log in" in result.stderr
    assert list(tmp_path.iterdir()) == [], "nothing was made by looking"
