"""A deletion that fails in its middle goes on by itself, or says what to do, and doing that works."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.agent.nodes import open_test_node, spec
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.vm.files import VmFiles
from twinshare.agent.vm.operations import delete
from twinshare.protocols.errors import HypervisorDown, Unavailable
from twinshare.protocols.operation import OperationState


class Away:
    """A hypervisor that does not undefine for so many calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
        self.calls, plain = calls, MemoryHypervisor.undefine

        async def undefine(hypervisor: MemoryHypervisor, id: str) -> None:
            if self.calls:
                self.calls -= 1
                raise HypervisorDown("it went away")
            await plain(hypervisor, id)

        monkeypatch.setattr(MemoryHypervisor, "undefine", undefine)
        monkeypatch.setattr(delete, "RETRY_EVERY", 0.001)


async def test_a_hypervisor_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch, 5)
    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec(start=True))
        await vms.delete_vm("one", force=True)
        assert (await vms.list_vms(), away.calls) == ([], 0)


async def test_one_that_stays_away_is_named_and_the_deletion_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, 1_000_000)
    monkeypatch.setattr(delete, "RETRIED_FOR", 0.01)
    async with open_test_node(tmp_path) as (node, vms, _):
        await vms.create_vm(spec())
        with pytest.raises(HypervisorDown, match="a part of VM 'one' is deleted; delete it again"):
            await vms.delete_vm("one")
        away.calls = 0
        await vms.delete_vm("one")
        assert await vms.list_vms() == []
        states = [one.state for one in await node.operations.list() if one.kind == "delete_vm"]
        assert states == [OperationState.DONE, OperationState.FAILED]


async def test_files_that_cannot_be_removed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(files: VmFiles, id: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    async with open_test_node(tmp_path) as (_, vms, _):
        await vms.create_vm(spec())
        with monkeypatch.context() as broken:
            broken.setattr(VmFiles, "remove", remove)
            with pytest.raises(Unavailable, match=r"delete it again when this is mended: .*Read-only file system"):
                await vms.delete_vm("one")
        await vms.delete_vm("one")
        assert list((tmp_path / "vms").iterdir()) == []
