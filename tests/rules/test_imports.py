"""The rooms' import rules: kept by the tree as it is, and each shown to notice when it is broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.tree import ROOMS, TOP

# A rule, the file to spoil, and the import that breaks the rule.
OFFENCES = [
    ("the API on the node, the node on the wire contract", "protocols/errors.py", "from ..agent import config"),
    ("the API on the node, the node on the wire contract", "agent/config.py", "from ..api import cli"),
    ("protocols are sans-IO", "protocols/errors.py", "import trio"),
    ("protocols are sans-IO", "protocols/vm.py", "import time"),
    ("libvirt stays behind its adapter", "agent/config.py", "import libvirt"),
    ("libvirt stays behind its adapter", "api/cli/__init__.py", "import libvirt"),
    ("libp2p stays behind its adapter", "agent/hypervisor/port.py", "import libp2p"),
    ("leaf rooms do not know each other", "agent/images/port.py", "from ..hypervisor import port as _"),
    ("leaf rooms do not know each other", "agent/p2p/__init__.py", "from .. import state"),
    (
        "VMs on the journal, streams to peers on top, the audit log beside",
        "agent/journal/active.py",
        "from ..vm import record",
    ),
    (
        "VMs on the journal, streams to peers on top, the audit log beside",
        "agent/vm/record.py",
        "from ..reach import tunnel",
    ),
    (
        "VMs on the journal, streams to peers on top, the audit log beside",
        "agent/audit/log.py",
        "from ..journal import active",
    ),
    ("the agent has no API", "agent/config.py", "import quart"),
]


def lint_imports(top: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=120, check=False)


def test_the_rules_are_kept() -> None:
    result = lint_imports(TOP)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("rule", "file", "offence"), OFFENCES, ids=[f"{file}: {bad}" for _, file, bad in OFFENCES])
def test_a_broken_rule_is_noticed(tmp_path: Path, rule: str, file: str, offence: str) -> None:
    for room in (*ROOMS, "twinshare"):
        shutil.copytree(TOP / room, tmp_path / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    spoiled = tmp_path / file
    spoiled.write_text(f"{spoiled.read_text()}\n{offence}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"{rule} BROKEN" in result.stdout
