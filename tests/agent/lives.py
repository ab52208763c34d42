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
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
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
from twinshare.protocols.services import ImageService, VmService
from twinshare.protocols.table import stub
from twinshare.protocols.vm import ForwardSpec, VmSpec

SPEC = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1, start=True)
STOPPED = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1)


@dataclass(frozen=True, slots=True)
class Client:
    """What a client asks with one idempotency key."""

    vms: VmService
    images: ImageService


@dataclass(frozen=True, slots=True)
class Owned:
    """How many of each thing that can be owned there are after a scenario."""

    vms: int = 1
    forwards: int = 0
    images: int = 1


Act = Callable[[Client], Awaitable[Any]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


PORT = free_port()
FORWARD = ForwardSpec(host_port=PORT, guest_port=80)


async def nothing(_: Client) -> None:
    """The preparation of a scenario that needs none."""


async def forwarded(client: Client) -> None:
    await client.vms.create_vm(SPEC)
    await client.vms.add_forward("one", FORWARD)


async def captured(client: Client) -> None:
    await client.vms.create_vm(STOPPED)
    await client.images.capture_image("one", "copy")


# name: what is there before, what the client asks, what there is after it
SCENARIOS: dict[str, tuple[Act, Act, Owned]] = {
    "create": (nothing, lambda client: client.vms.create_vm(STOPPED), Owned()),
    "create+start": (nothing, lambda client: client.vms.create_vm(SPEC), Owned()),
    "start": (lambda client: client.vms.create_vm(STOPPED), lambda client: client.vms.start_vm("one"), Owned()),
    "stop": (lambda client: client.vms.create_vm(SPEC), lambda client: client.vms.stop_vm("one", force=True), Owned()),
    "restart": (
        lambda client: client.vms.create_vm(SPEC), lambda client: client.vms.restart_vm("one", force=True), Owned(),
    ),
    "delete": (
        lambda client: client.vms.create_vm(SPEC), lambda client: client.vms.delete_vm("one", force=True), Owned(vms=0),
    ),
    "forward": (
        lambda client: client.vms.create_vm(SPEC),
        lambda client: client.vms.add_forward("one", ForwardSpec(host_port=0, guest_port=80)),
        Owned(forwards=1),
    ),
    "remove forward": (forwarded, lambda client: client.vms.remove_forward("one", PORT), Owned()),
    "capture": (
        lambda client: client.vms.create_vm(STOPPED),
        lambda client: client.images.capture_image("one", "copy"),
        Owned(images=2),
    ),
    "remove image": (captured, lambda client: client.images.remove_image("copy"), Owned()),
}  # fmt: skip


def config(home: Path) -> Config:
    return Config(
        node=NodeConfig(name="here", data_dir=str(home)),
        api=ApiConfig(listen="127.0.0.1:0"),
        p2p=P2pConfig(enabled=False),
        hypervisor=HypervisorConfig(uri=f"fake://{home}/fake.json"),
    )


def client_of(node: Node, key: str) -> Client:
    caller = Caller(principal="local", role=Role.ADMIN, idempotency_key=key or None)
    call = partial(node.dispatcher.call, caller)
    return Client(cast("VmService", stub(VmService, call)), cast("ImageService", stub(ImageService, call)))


async def prepare(home: Path, act: Act) -> None:
    async with open_node(config(home)) as node:
        await node.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        await act(client_of(node, ""))


async def live(home: Path, act: Act) -> dict[str, Any]:
    """One whole life: start, recover, ask, look at what is there."""
    async with open_node(config(home)) as node:
        await act(client_of(node, "the-key"))
        found = await node.operations.list()
        with trio.fail_after(60):
            for operation in found:
                await node.operations.wait(operation.id, 20)
        states = [str(operation.state) for operation in await node.operations.list()]
        client = client_of(node, "")
        vms = await client.vms.list_vms()
        forwards = [await client.vms.list_forwards(vm.id) for vm in vms]
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


def tell(scenario: str, when: str, killed: bool, expected: Owned, status: int, seen: Any) -> None:
    line = {
        "scenario": scenario,
        "when": when,
        "killed": killed,
        "expected": asdict(expected),
        "status": status,
        "seen": seen,
    }
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
