"""Lives of an agent that is killed: run as a program, so that it can fork before any thread exists.

For each scenario the first life is killed with SIGKILL, at a boundary of the journal or at a random instant; the second
life recovers and the client repeats its request with the same idempotency key. Prints one JSON line a pair of lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
import trio

from tests.ports import free_port
from twinshare.agent.config import ApiConfig, Config, HypervisorConfig, NodeConfig, P2pConfig
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.journal.store import JournalStore
from twinshare.agent.node import Node
from twinshare.agent.open_node import open_node
from twinshare.agent.p2p.libp2p import discovery  # noqa: F401 - costs each life 0.7 s of CPU if not imported before
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import Conflict, TokenNotFound
from twinshare.protocols.image_service import ImageService
from twinshare.protocols.method import Method
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.peer_service import PeerService
from twinshare.protocols.services import TokenService, VmService
from twinshare.protocols.table import stub
from twinshare.protocols.vm import ForwardSpec, VmSpec

SPEC = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1, start=True)
STOPPED = VmSpec(name="one", image="disk", memory=64, disk_size=1, cpu_cores=1)


@dataclass(frozen=True, slots=True)
class Client:
    """What a client asks with one idempotency key; `far` are the VMs of the peer `there`."""

    vms: VmService
    images: ImageService
    tokens: TokenService
    peers: PeerService
    far: VmService


@dataclass(frozen=True, slots=True)
class Owned:
    """How many of each thing that can be owned there are after a scenario, which may need a peer."""

    vms: int = 1
    forwards: int = 0
    images: int = 1
    tunnels: int = 0
    tokens: int = 1
    with_peer: bool = False


Act = Callable[[Client], Awaitable[Any]]


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


async def tunnelled(client: Client) -> None:
    await client.far.add_forward("far", FORWARD)


async def create_token(client: Client) -> None:
    """Its secret is answered once: who was not answered has a token of that name to revoke."""
    with contextlib.suppress(Conflict):
        await client.tokens.create_token(TokenRequest(name="new", role=Role.VIEWER))


async def revoke_token(client: Client) -> None:
    with contextlib.suppress(TokenNotFound):
        await client.tokens.revoke_token("kept")


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
    "tunnel": (nothing, lambda client: client.far.add_forward("far", FORWARD), Owned(vms=0, tunnels=1, with_peer=True)),
    "tunnel to any port": (
        nothing,
        lambda client: client.far.add_forward("far", ForwardSpec(host_port=0, guest_port=80)),
        Owned(vms=0, tunnels=1, with_peer=True),
    ),
    "remove tunnel": (tunnelled, lambda client: client.far.remove_forward("far", PORT), Owned(vms=0, with_peer=True)),
    "create token": (nothing, create_token, Owned(vms=0, tokens=2)),
    "revoke token": (nothing, revoke_token, Owned(vms=0, tokens=0)),
}  # fmt: skip


def config(home: Path, name: str, with_peer: bool) -> Config:
    return Config(
        node=NodeConfig(name=name, data_dir=str(home)),
        api=ApiConfig(listen="127.0.0.1:0"),
        p2p=P2pConfig(enabled=with_peer, dead_peer_timeout=2.0),
        hypervisor=HypervisorConfig(uri=f"fake://{home}/fake.json"),
    )


def client_of(node: Node, key: str) -> Client:
    caller = Caller(principal="local", role=Role.ADMIN, idempotency_key=key or None)

    async def call_far(method: Method, arguments: Mapping[str, Any]) -> Any:
        return await node.call(caller, method, arguments, "there")

    near = partial(node.call, caller)
    return Client(
        vms=cast("VmService", stub(VmService, near)),
        images=cast("ImageService", stub(ImageService, near)),
        tokens=cast("TokenService", stub(TokenService, near)),
        peers=cast("PeerService", stub(PeerService, near)),
        far=cast("VmService", stub(VmService, call_far)),
    )


@asynccontextmanager
async def nodes(home: Path, with_peer: bool) -> AsyncIterator[list[Node]]:
    """The node whose operations are killed and, if the scenario needs one, its peer, on a network in memory."""
    host = partial(open_memory_host, MemoryNetwork(), peer_timeout=2.0)
    async with AsyncExitStack() as stack:
        folders = {"here": home} | ({"there": home / "there"} if with_peer else {})
        yield [
            await stack.enter_async_context(open_node(config(folder, name, with_peer), host))
            for name, folder in folders.items()
        ]


async def prepare(home: Path, act: Act, with_peer: bool) -> None:
    async with nodes(home, with_peer) as (node, *peers):
        client = client_of(node, "")
        for one in (node, *peers):
            await one.import_image(LOCAL_ADMIN, "disk", pieces(raw_disk(1)))
        for peer in peers:
            there = client_of(peer, "")
            await there.vms.create_vm(msgspec.structs.replace(SPEC, name="far"))
            await there.peers.join_fleet((await client.peers.invite_peer(InviteRequest(role=Role.ADMIN))).ticket)
        await client.tokens.create_token(TokenRequest(name="kept", role=Role.OPERATOR))
        await act(client)


async def until_there(client: Client) -> None:
    with trio.fail_after(60):
        while not any(peer.name == "there" and peer.status == "online" for peer in await client.peers.list_peers()):
            await trio.sleep(0.005)


async def live(home: Path, act: Act, with_peer: bool) -> dict[str, Any]:
    """One whole life: start, recover, ask, look at what is there."""
    async with nodes(home, with_peer) as (node, *_):
        if with_peer:
            await until_there(client_of(node, ""))
        await act(client_of(node, "the-key"))
        found = await node.operations.list()
        with trio.fail_after(60):
            for operation in found:
                await node.operations.wait(operation.id, 20)
        states = [str(operation.state) for operation in await node.operations.list()]
        client = client_of(node, "")
        vms = await client.vms.list_vms()
        forwards = [await client.vms.list_forwards(vm.id) for vm in vms]
        tunnels = await client.far.list_forwards("far") if with_peer else []
        images = [image.digest for image in await node.images.store.list_images()]
        directories = [path.name for path in (home / "vms").iterdir()]
        files = sorted(path.name for path in (home / "vms").glob("*/*"))
        return {
            "vms": [vm.id for vm in vms], "directories": directories, "files": files, "states": states,
            "forwards": sum(map(len, forwards)), "images": len(images),
            "tunnels": sum(tunnel.active for tunnel in tunnels), "tokens": len(await client.tokens.list_tokens()),
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


def dying_at(boundary: int, life: Callable[[], Awaitable[Any]]) -> Any:
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
    return trio.run(life)


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
        finish(*in_child(partial(trio.run, prepare, home, before, expected.with_peer)))
        life = partial(live, home, act, expected.with_peer)
        home.rename(template)
        killed, boundary = True, 0
        while killed:
            fresh(template, home)
            status, _ = finish(*in_child(partial(dying_at, boundary, life)))
            killed = status == -signal.SIGKILL
            status, seen = finish(*in_child(partial(trio.run, life)))
            tell(name, f"boundary {boundary}", killed, expected, status, seen)
            boundary += 1
        shutil.rmtree(home)


def random_instants(root: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    names = list(SCENARIOS)
    home = root / "home"
    templates: dict[str, Path] = {}
    for name in names:
        before, _, expected = SCENARIOS[name]
        finish(*in_child(partial(trio.run, prepare, home, before, expected.with_peer)))
        templates[name] = root / f"{name}-before"
        home.rename(templates[name])
    for number in range(count):
        name = names[number % len(names)]
        _, act, expected = SCENARIOS[name]
        fresh(templates[name], home)
        life = partial(live, home, act, expected.with_peer)
        pid, reader = in_child(partial(trio.run, life))
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        killed = finish(pid, reader)[0] == -signal.SIGKILL
        status, seen = finish(*in_child(partial(trio.run, life)))
        tell(name, f"random {number}", killed, expected, status, seen)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if sys.argv[1] == "boundaries":
        walk_boundaries(Path(sys.argv[2]))
    else:
        random_instants(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
