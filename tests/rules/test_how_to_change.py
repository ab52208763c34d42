"""docs/how-to-change.md holds: an operation, a VM's field and an event are added in a copy of the tree, and work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.rules.tree import TOP

PAGE = TOP / "docs/how-to-change.md"
PARTS = ("agent", "api", "configs", "protocols", "scripts", "tests/agent", "tests/api", "twinshare")

OPERATION = '''    @rest("POST", "/vm/<vm>/praise", Role.OPERATOR)
    async def praise_vm(self, vm: VmRef, words: str = "well done") -> Vm:
        """Praise a VM."""
        ...

'''
CLASS = '''"""Praise a VM."""

from __future__ import annotations

from ....protocols.services import VmService
from ...journal.active import ActiveOperation
from .base import ExistingVmOperation


class PraiseVm(ExistingVmOperation):
    method = VmService.praise_vm

    async def change(self, active: ActiveOperation, id: str) -> None:
        await active.step("praise")
'''
EVENT = '''class VmPraised(EventPayload, frozen=True, kw_only=True):
    """A VM was praised."""

    event = EventKind.VM_PRAISED
    id: str


'''
PROOF = """
import sys
from pathlib import Path
import trio
import twinshare
from scripts.documents import events, rest
from tests.api.served import SPEC, served
from twinshare.api.rest_client import RESTClient
from twinshare.api.app import make_app
from twinshare.protocols.events import VmPraised
from twinshare.protocols.vm import VmChange

assert Path(twinshare.__file__).is_relative_to(sys.argv[1]), twinshare.__file__

async def main():
    async with served(Path(sys.argv[2])) as api:
        rules = {rule.rule for rule in make_app(api.node, "http://localhost").url_map.iter_rules()}
        assert any(rule.endswith("/api/vm/<vm>/praise") for rule in rules)
        assert any(rule.endswith("/api/remote/<peer>/vm/<vm>/praise") for rule in rules)
        paths = (await api.get("/api/openapi.json"))["paths"]
        assert any(path.endswith("/praise") for path in paths)
        made = (await api.client.post("/api/vm", json=SPEC | {"nickname": "first"})).json()
        assert made["nickname"] == "first", made
        async with RESTClient(api.url) as client:
            await client.vms().praise_vm("one", words="good")
            changed = await client.vms().update_vm("one", VmChange(nickname="second"))
            assert changed.nickname == "second"
        assert (await api.get("/api/vm/one"))["nickname"] == "second"
        assert "praise_vm" in {operation.kind for operation in await api.node.operations.list()}
        async with api.node.events.subscribe() as feed:
            api.node.events.publish(VmPraised(id="1"))
            with trio.fail_after(60):
                while (await feed.receive()).type != "vm.praised":
                    pass
    assert "/praise" in rest.page()
    assert "nickname" in rest.page()
    assert "`vm.praised`" in events.page()

trio.run(main)
"""


class Copy:
    """A copy of the tree, and the product files that were edited in it since the last change began."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.edited: set[str] = set()
        for part in PARTS:
            ignored = shutil.ignore_patterns("__pycache__", "node_modules")
            shutil.copytree(TOP / part, top / part, symlinks=True, ignore=ignored)

    def insert(self, file: str, before: str, text: str) -> None:
        path = self.top / file
        whole = path.read_text()
        assert before in whole, f"{file}: {before}"
        path.write_text(whole.replace(before, text + before, 1))
        self.edited.add(file)

    def add(self, file: str, text: str) -> None:
        (self.top / file).write_text(text)
        self.edited.add(file)

    def count(self) -> int:
        count, self.edited = len(self.edited), set()
        return count


def add_operation(copy: Copy) -> None:
    copy.insert("protocols/services.py", '    @rest("GET", "/vm/<vm>/ip", Role.VIEWER)', OPERATION)


def add_class(copy: Copy) -> None:
    copy.add("agent/vm/operations/praise.py", CLASS)
    copy.insert("agent/vm/operations/__init__.py", "    remove_forward,\n", "    praise,\n")


def run(copy: Copy, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(copy.top)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy.top, env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_each_change_takes_the_files_that_the_page_names(tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    add_operation(copy)
    without_class = run(copy, "-c", "import twinshare.agent.operations")
    assert "TypeError: VmService.praise_vm has no class" in without_class.stderr
    add_class(copy)
    assert copy.count() <= 3
    copy.insert("protocols/vm.py", "    autostart: bool = False\n", '    nickname: str = ""\n')
    assert copy.count() <= 2
    copy.insert("protocols/events.py", '    VM_DELETED = "vm.deleted"\n', '    VM_PRAISED = "vm.praised"\n')
    copy.insert("protocols/events.py", "class VmUndefined(", EVENT)
    assert copy.count() == 1
    proof = run(copy, "-c", PROOF, str(copy.top), str(tmp_path / "node"))
    assert proof.returncode == 0, proof.stderr


def test_the_page_names_files_that_exist() -> None:
    named = set(re.findall(r"`((?:agent|api|protocols|scripts|docs)/[\w./-]*)`", PAGE.read_text()))
    assert len(named) >= 8
    assert [path for path in sorted(named) if not (TOP / path).exists()] == []
