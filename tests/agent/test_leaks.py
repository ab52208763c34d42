"""A thousand lives of VMs on the in-memory hypervisor leave a node as it was: files, threads, tasks, processes."""

from collections import Counter
from pathlib import Path

import pytest
import trio

from tests.leaks import Held, held

from .nodes import open_test_node, spec

CYCLES = 1000


def tasks() -> int:
    """How many tasks this run has."""
    root = trio.lowlevel.current_root_task()
    waiting, count = [root] if root else [], 0
    while waiting:
        task = waiting.pop()
        count += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return count


async def at_rest() -> tuple[Held, int]:
    """What is held once no worker thread is busy: the last event may still be on its way to the disk."""
    with trio.fail_after(60):
        while True:
            now = held()
            if not any(" from " in name for name in now.threads):
                return now, tasks()
            await trio.sleep(0.01)


@pytest.mark.system
async def test_a_thousand_lives_leave_nothing(memory_path: Path) -> None:
    async with open_test_node(memory_path) as (_node, vms, _):
        await vms.create_vm(spec("warm", start=True))
        await vms.delete_vm("warm", force=True)
        before, tasks_before = await at_rest()

        async def live(names: list[str]) -> None:
            for name in names:
                await vms.create_vm(spec(name, start=True))
                await vms.stop_vm(name, force=True)
                await vms.delete_vm(name)

        with trio.fail_after(240):
            async with trio.open_nursery() as nursery:
                for lane in range(4):
                    nursery.start_soon(live, [f"vm-{number}" for number in range(lane, CYCLES, 4)])
        assert await vms.list_vms() == []
        assert list((memory_path / "vms").iterdir()) == []
        with trio.fail_after(60):
            after, tasks_after = await at_rest()
            while (Counter(after.files), tasks_after) != (Counter(before.files), tasks_before):
                await trio.sleep(0.01)
                after, tasks_after = await at_rest()
        assert after.threads == before.threads
        assert after.children == before.children
