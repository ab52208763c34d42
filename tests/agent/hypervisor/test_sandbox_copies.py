"""A copied data directory harms nobody, and a link that something removed is restored."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.agent.hypervisor.guests import PlanMaker, last_tick, ticks_past
from tests.agent.hypervisor.lab import open_lab
from tests.agent.hypervisor.private import data_directory, needs_libvirt
from tests.agent.hypervisor.sandboxes import QEMU, QMP_PORT, agent, greeting, root
from twinshare.agent.backends import open_backends
from twinshare.agent.config import Config
from twinshare.agent.home import HomeError
from twinshare.agent.hypervisor import log_size
from twinshare.agent.hypervisor.libvirt import open_private_libvirt
from twinshare.agent.hypervisor.port import DomainState
from twinshare.agent.hypervisor.sandbox.location import DirectoryInUse
from twinshare.agent.hypervisor.sandbox.sandbox import Sandbox, open_sandbox

pytestmark = [pytest.mark.system, root]


def copy_of(data_dir: Path, name: str = "copy") -> Path:
    """A copy as `cp -a` makes it, without what no copy has: sockets."""
    target = data_dir.with_name(f"{data_dir.name}-{name}")

    def sockets(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name).is_socket()]

    shutil.copytree(data_dir, target, symlinks=True, ignore=sockets)
    for path in (data_dir, *data_dir.rglob("*")):
        copied = target / path.relative_to(data_dir)
        if copied.exists() and not copied.is_symlink():
            os.chown(copied, path.stat().st_uid, path.stat().st_gid)
    return target


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def remove(*paths: Path | str) -> None:
    for path in paths:
        Path(path).unlink()


def target_of(link: Path) -> Path:
    return link.readlink()


async def refusal(data_dir: Path) -> str:
    before = names_in(data_dir)
    with pytest.raises(DirectoryInUse) as caught:
        async with open_sandbox(data_dir):
            pass
    assert names_in(data_dir) == before
    return str(caught.value)


async def test_a_copy_is_refused_while_the_agent_of_the_original_runs(node: Path) -> None:
    async with open_sandbox(node) as sandbox:
        record = (node / "enclosure.json").read_bytes()
        message = await refusal(copy_of(node))
        assert f"is a copy of {node}, whose VMs run" in message
        assert sandbox.path.readlink() == node
        assert (node / "enclosure.json").read_bytes() == record
        assert (await sandbox.run(["echo", "well"])).stdout == b"well\n"


async def test_a_copy_is_refused_while_the_original_is_locked(node: Path) -> None:
    """An agent that has just started holds the lock before its sandbox is open."""
    async with agent(node) as killed:
        path = Path((await killed.tell("state"))["path"])
        await killed.kill()
    copy = copy_of(node)
    record = json.loads((node / "enclosure.json").read_text()) | {"keeper": None, "network": 0}
    for folder in (node, copy):
        (folder / "enclosure.json").write_text(json.dumps(record))
    assert target_of(path) == node
    with (node / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "whose agent runs" in await refusal(copy)
    async with open_sandbox(copy) as sandbox:
        assert sandbox.path == path
        assert target_of(path) == copy


async def test_a_copy_is_refused_while_guests_of_the_original_run_without_their_link(node: Path) -> None:
    async with agent(node) as first:
        guest = await first.tell("spawn", argv=QEMU)
        path = Path((await first.tell("state"))["path"])
        await first.kill()
    copy = copy_of(node)
    remove(path)
    assert "whose VMs run" in await refusal(copy)
    async with open_sandbox(node) as sandbox:
        assert guest in sandbox.pids()
        os.kill(guest, signal.SIGKILL)
        with trio.fail_after(60):
            while sandbox.pids():
                await trio.sleep(0.02)


async def test_the_backends_of_a_copy_end_the_start_with_a_sentence(node: Path) -> None:
    async with open_sandbox(node):
        with pytest.raises(HomeError, match="is a copy of"):
            async with open_backends(copy_of(node), Config()):
                pass


@needs_libvirt
async def test_guests_of_the_original_survive_the_start_of_a_copy_and_a_copy_at_rest_works() -> None:
    with data_directory() as data_dir:
        async with open_sandbox(data_dir) as sandbox, open_lab(sandbox) as lab:
            plan = await lab.running("original")
            copy = copy_of(data_dir)
            try:
                await refusal(copy)
                counted = last_tick(plan)
                assert await ticks_past(plan, counted + 5) < 0x8000
                assert (await lab.hypervisor.get_domain(plan.id)).state is DomainState.RUNNING
            finally:
                shutil.rmtree(copy)
            await lab.hypervisor.destroy(plan.id)
            await lab.hypervisor.undefine(plan.id)
            await lab.hypervisor.define(plan)
            copy = copy_of(data_dir)
            (domain,) = await lab.hypervisor.list_domains()
        shutil.rmtree(data_dir)
        copy.rename(data_dir)
        async with open_sandbox(data_dir) as sandbox, open_lab(sandbox) as lab:
            assert [found.id for found in await lab.hypervisor.list_domains()] == [domain.id]
            await lab.hypervisor.start(plan.id)
            await lab.hypervisor.destroy(plan.id)


async def heard(sandbox: Sandbox, port: int) -> str:
    async with await sandbox.dial(port) as stream:
        return (await stream.receive_some(1000)).decode()


async def test_a_removed_link_is_restored_or_is_a_problem(node: Path) -> None:
    async with open_sandbox(node) as sandbox:
        sandbox.path.unlink()
        with trio.fail_after(20):
            while not sandbox.path.is_symlink():
                await trio.sleep(0.05)
        assert not [problem for problem in sandbox.problems if "is missing" in problem]
        sandbox.path.unlink()
        sandbox.path.mkdir()
        (sandbox.path / "in the way").touch()
        try:
            with trio.fail_after(20):
                while not [problem for problem in sandbox.problems if f"{sandbox.path} is missing" in problem]:
                    await trio.sleep(0.05)
        finally:
            shutil.rmtree(sandbox.path)


async def test_its_log_is_kept_short_from_the_start_and_while_it_is_open(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_size, "CHECKED_EVERY", 0.02)
    log = node / "sandbox.log"
    log.write_bytes(bytes(log_size.MAX_LOG_SIZE + 1))
    async with open_sandbox(node):
        for _ in range(2):
            with trio.fail_after(30):
                while log.stat().st_size > log_size.MAX_LOG_SIZE:
                    await trio.sleep(0.01)
            with log.open("ab") as file:
                file.write(bytes(log_size.MAX_LOG_SIZE + 1))


async def test_guests_are_found_by_the_next_agent_after_their_supervisor_was_replaced(node: Path) -> None:
    """Its socket was removed: the new supervisor is not the guests' parent."""
    async with open_sandbox(node) as sandbox:
        guest = await sandbox.spawn(QEMU, env={}, stderr=node / "log")
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
        remove(f"{sandbox.path}.sock")
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
    async with open_sandbox(node) as sandbox:
        assert guest.pid in sandbox.pids()
        assert "QMP" in await greeting(partial(heard, sandbox, QMP_PORT))
        os.kill(guest.pid, signal.SIGTERM)
        with trio.fail_after(60):
            while sandbox.pids():
                await trio.sleep(0.02)


@needs_libvirt
async def test_forwards_and_screens_work_after_link_and_socket_were_removed_and_the_agent_restarted() -> None:
    with data_directory() as data_dir:
        async with open_sandbox(data_dir) as sandbox, open_private_libvirt(sandbox) as hypervisor:
            plan = await PlanMaker(sandbox.path / "vms", sandbox.chown)("survivor")
            await hypervisor.define(plan)
            await hypervisor.start(plan.id)
            await ticks_past(plan, 0)
            remove(sandbox.path, f"{sandbox.path}.sock")
            await (await hypervisor.dial_guest(plan.id, 80)).aclose()
        async with open_sandbox(data_dir) as sandbox, open_lab(sandbox) as lab:
            await (await lab.hypervisor.dial_guest(plan.id, 80)).aclose()
            await (await lab.hypervisor.dial_screen(plan.id)).aclose()
