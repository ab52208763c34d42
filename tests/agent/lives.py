"""Lives of an agent that is killed: run as a program, so that it can fork before any thread exists.

For each scenario the first life is killed with SIGKILL, at a boundary of the journal or at a random instant; the second
life recovers and the client repeats its request with the same idempotency key. Prints one JSON line a pair of lives.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog
import trio

from twinshare.agent.config import ApiConfig, Config, HypervisorConfig, NodeConfig, P2pConfig
from twinshare.agent.images.contract import pieces, raw_disk
from twinshare.agent.journal.store import JournalStore
from twinshare.agent.node import Node, open_node
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.services import VmService
from twinshare.protocols.table import stub
from twinshare.protocols.vm import ForwardSpec, VmSpec

SPEC = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1, start=True)
STOPPED = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1)

Act = Callable[[VmService], Awaitable[Any]]


async def nothing(vms: VmService) -> None:
    """The preparation of a scenario that needs none."""


# name: what is there before, what the client asks, how many VMs there are after it
SCENARIOS: dict[str, tuple[Act, Act, int]] = {
    "create": (nothing, lambda vms: vms.create_vm(STOPPED), 1),
    "create+start": (nothing, lambda vms: vms.create_vm(SPEC), 1),
    "start": (lambda vms: vms.create_vm(STOPPED), lambda vms: vms.start_vm("one"), 1),
    "stop": (lambda vms: vms.create_vm(SPEC), lambda vms: vms.stop_vm("one", force=True), 1),
    "restart": (lambda vms: vms.create_vm(SPEC), lambda vms: vms.restart_vm("one", force=True), 1),
    "delete": (lambda vms: vms.create_vm(SPEC), lambda vms: vms.delete_vm("one", force=True), 0),
    "forward": (
        lambda vms: vms.create_vm(SPEC),
        lambda vms: vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80)),
        1,
    ),
}


def config(home: Path) -> Config:
    return Config(
        node=NodeConfig(name="here", data_dir=str(home)),
        api=ApiConfig(listen="127.0.0.1:0"),
        p2p=P2pConfig(enabled=False),
        hypervisor=HypervisorConfig(uri=f"fake://{home}/fake.json"),
    )


def vms_of(node: Node, key: str) -> VmService:
    caller = Caller(principal="local", role=Role.ADMIN, idempotency_key=key)
    return cast("VmService", stub(VmService, partial(node.dispatcher.call, caller)))


async def prepare(home: Path, act: Act) -> None:
    async with open_node(config(home)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        await act(vms_of(node, "before"))


async def live(home: Path, act: Act) -> dict[str, Any]:
    """One whole life: start, recover, ask, look at what is there."""
    async with open_node(config(home)) as node:
        await act(vms_of(node, "the-key"))
        found = await node.operations.list()
        with trio.fail_after(60):
            for operation in found:
                await node.operations.wait(operation.id, 20)
        states = [str(operation.state) for operation in await node.operations.list()]
        vms = await vms_of(node, "").list_vms()
        forwards = [await vms_of(node, "").list_forwards(vm.id) for vm in vms]
        images = [image.digest for image in await node.images.store.list_images()]
        directories = [path.name for path in (home / "vms").iterdir()]
        files = sorted(path.name for path in (home / "vms").glob("*/*"))
        return {
            "vms": [vm.id for vm in vms], "directories": directories, "files": files, "states": states,
            "forwards": sum(map(len, forwards)), "images": len(images),
        }  # fmt: skip


def in_child(work: Callable[[], Any]) -> tuple[int, int]:
    """Fork, do it, tell (pid, read end of what it says)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode())
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a child must tell its parent, whatever it is
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(writer)
    return pid, reader


def finish(pid: int, reader: int) -> tuple[int, Any]:
    said = b""
    while data := os.read(reader, 65536):
        said += data
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(said) if said else None


def dying_at(boundary: int, home: Path, act: Act) -> Any:
    """Live, and be killed when the journal is about to be written (even) or was just written (odd)."""
    written = 0
    plain = JournalStore.update, JournalStore.insert

    def mortal(write: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def wrapper(*args: Any, **kwargs: Any) -> None:
            nonlocal written
            for moment in range(2):
                if written == boundary:
                    os.kill(os.getpid(), signal.SIGKILL)
                written += 1
                if moment == 0:
                    await write(*args, **kwargs)

        return wrapper

    JournalStore.update = mortal(plain[0])  # type: ignore[method-assign,assignment]  # it dies in there
    JournalStore.insert = mortal(plain[1])  # type: ignore[method-assign,assignment]  # as above
    return trio.run(live, home, act)


def tell(scenario: str, when: str, killed: bool, expected: int, status: int, seen: Any) -> None:
    line = {"scenario": scenario, "when": when, "killed": killed, "expected": expected, "status": status, "seen": seen}
    print(json.dumps(line), flush=True)


def fresh(template: Path, home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(template, home)


def walk_boundaries(root: Path) -> None:
    for name, (before, act, expected) in SCENARIOS.items():
        template, home = root / f"{name}-before", root / "home"
        # The template is made at the path where it is used: overlays and domains name it.
        finish(*in_child(partial(trio.run, prepare, home, before)))
        home.rename(template)
        killed, boundary = True, 0
        while killed:
            fresh(template, home)
            status, _ = finish(*in_child(partial(dying_at, boundary, home, act)))
            killed = status == -signal.SIGKILL
            status, seen = finish(*in_child(partial(trio.run, live, home, act)))
            tell(name, f"boundary {boundary}", killed, expected, status, seen)
            boundary += 1
        shutil.rmtree(home)


def random_instants(root: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    names = list(SCENARIOS)
    home = root / "home"
    templates: dict[str, Path] = {}
    for name in names:
        finish(*in_child(partial(trio.run, prepare, home, SCENARIOS[name][0])))
        templates[name] = root / f"{name}-before"
        home.rename(templates[name])
    for number in range(count):
        name = names[number % len(names)]
        _, act, expected = SCENARIOS[name]
        fresh(templates[name], home)
        pid, reader = in_child(partial(trio.run, live, home, act))
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        killed = finish(pid, reader)[0] == -signal.SIGKILL
        status, seen = finish(*in_child(partial(trio.run, live, home, act)))
        tell(name, f"random {number}", killed, expected, status, seen)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if sys.argv[1] == "boundaries":
        walk_boundaries(Path(sys.argv[2]))
    else:
        random_instants(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
