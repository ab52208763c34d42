"""Nodes' meshes on a network in memory, each with a few VMs to show; started, killed and restarted at will."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import trio

from tests.agent.p2p.workshop import Happenings
from twinshare.agent.background import open_background
from twinshare.agent.p2p.membership import Override
from twinshare.agent.p2p.memory import MemoryNetwork, open_memory_host
from twinshare.agent.p2p.mesh import Mesh, open_mesh
from twinshare.agent.p2p.shelf import MemoryShelf
from twinshare.agent.p2p.signing import Signer
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role
from twinshare.protocols.errors import VmNotFound
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.services import SERVICES, PeerService
from twinshare.protocols.table import Dispatcher, Method, all_methods, stub
from twinshare.protocols.vm import Vm, VmStatus

EPOCH = 1_750_000_000.0
TABLE = all_methods(SERVICES)


def now() -> float:
    """The time of day, on the virtual clock."""
    return EPOCH + trio.current_time()


def vm(name: str, status: VmStatus = VmStatus.RUNNING) -> Vm:
    return Vm(
        id=f"id-{name}",
        name=name,
        status=status,
        cpu_cores=1,
        memory=64,
        disk_size=1,
        hypervisor="qemu",
        network="default",
        vnc_port=None,
        created_at=datetime(2025, 5, 10, tzinfo=UTC),
    )


@dataclass
class Member:
    """One node: what outlives it, and its mesh while it runs."""

    number: int
    signer: Signer
    overrides: dict[str, Override] = field(default_factory=dict)
    shelf: MemoryShelf = field(default_factory=MemoryShelf)
    vms: dict[str, Vm] = field(default_factory=dict)
    happenings: Happenings = field(default_factory=Happenings)
    reached: list[tuple[Caller, str]] = field(default_factory=list)
    running: Mesh | None = None
    scope: trio.CancelScope | None = None
    ended: trio.Event | None = None

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def peer_id(self) -> str:
        return self.signer.peer_id

    @property
    def mesh(self) -> Mesh:
        assert self.running is not None, f"{self.name} is not running"
        return self.running

    @property
    def online(self) -> set[str]:
        running = self.mesh.running
        return {line.peer_id for line in running.links.lines} if running else set()

    async def call(self, name: str, caller: Caller = LOCAL_ADMIN, **arguments: Any) -> Any:
        """An operation of the node's own users."""
        return await self.mesh.parts.dispatcher.call(caller, TABLE[name], arguments)

    async def ask(self, peer: str, name: str, caller: Caller = LOCAL_ADMIN, **arguments: Any) -> Any:
        """An operation of a peer."""
        return await self.mesh.call(peer, TABLE[name], arguments, caller)

    def dispatcher(self) -> Dispatcher:
        def bind(service: type, caller: Caller) -> Any:
            return stub(service, partial(self._do, caller))

        return Dispatcher({service: partial(bind, service) for service in SERVICES if service is not PeerService})

    async def _do(self, caller: Caller, method: Method, arguments: Mapping[str, Any]) -> Any:
        await trio.lowlevel.checkpoint()
        self.reached.append((caller, method.name))
        if method.name == "list_vms":
            return list(self.vms.values())
        name = arguments.get("vm") or arguments["spec"].name if {"vm", "spec"} & arguments.keys() else ""
        if method.name == "create_vm":
            self.vms[name] = vm(name)
            self.happenings.publish("vm.state", {"name": name})
        if method.name == "wait_operation":
            await trio.sleep(arguments["timeout"])
        if name not in self.vms:
            raise VmNotFound(f"no VM is called '{name}' here", name=name)
        return self.vms[name]


class Cluster:
    """Made by `open_cluster`."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, seed: int, silence: float) -> None:
        self.network, self.rng, self.silence = network, random.Random(seed), silence
        # A simulation of a day has better things to do than to exchange pings: there the network alone notices silence.
        self.dead_after = silence
        self.members: list[Member] = []
        self._nursery = nursery

    def __getitem__(self, number: int) -> Member:
        return self.members[number]

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.running is not None]

    async def add(self, overrides: Mapping[str, Override] | None = None) -> Member:
        number = len(self.members)
        seed = b"node" + number.to_bytes(28, "big")
        self.members.append(Member(number, Signer(seed), dict(overrides or {})))
        return await self.start(number)

    async def start(self, number: int) -> Member:
        """Start a node, at an address of its own that it never had."""
        member = self.members[number]
        await self._nursery.start(self._live, member)
        return member

    async def kill(self, number: int) -> None:
        """As kill -9 does: nothing is said or saved."""
        member = self.members[number]
        assert member.scope is not None
        assert member.ended is not None
        member.scope.cancel()
        await member.ended.wait()

    async def grow(self, number: int, role: Role = Role.ADMIN) -> None:
        """Add nodes until there are `number`, each joining by a ticket of the first."""
        while len(self.members) < number:
            member = await self.add()
            if member.number:
                await self.join(member, self.members[0], role)

    async def join(self, joiner: Member, inviter: Member, role: Role = Role.ADMIN) -> None:
        ticket = await inviter.call("invite_peer", invite=InviteRequest(role=role))
        await joiner.call("join_fleet", ticket=ticket.ticket)

    async def _live(self, member: Member, task_status: trio.TaskStatus[None]) -> None:
        member.ended = trio.Event()
        try:
            with trio.CancelScope() as member.scope:
                async with open_mesh(
                    open_host=lambda gate: open_memory_host(
                        self.network, member.peer_id, gate, dead_after=self.dead_after
                    ),
                    signer=member.signer,
                    name=member.name,
                    agent="twinshare/test",
                    dispatcher=member.dispatcher(),
                    shelf=member.shelf,
                    events=member.happenings.subscribe,
                    publish=lambda type, data: member.happenings.publish(type, dict(data)),
                    now=now,
                    overrides=member.overrides,
                    silence=self.silence,
                    rng=random.Random(self.rng.random()),
                ) as member.running:
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            member.running = None
            member.ended.set()

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for a condition; tells how long that took. Raises: TooSlowError."""
        began = trio.current_time()
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.05)
        return trio.current_time() - began

    def converged(self, *numbers: int) -> bool:
        """Whether these nodes (all that run, by default) all see each other online, and nobody else."""
        members = [self.members[number] for number in numbers] or self.alive
        everybody = {member.peer_id for member in members}
        return all(member.online == everybody - {member.peer_id} for member in members)


@asynccontextmanager
async def open_cluster(
    number: int = 0, *, seed: int = 0, silence: float = 15.0, network: MemoryNetwork | None = None
) -> AsyncIterator[Cluster]:
    """A fleet of `number` admins that all see each other."""
    async with open_background() as nursery:
        cluster = Cluster(nursery, network or MemoryNetwork(), seed, silence)
        await cluster.grow(number)
        await cluster.until(cluster.converged, 30)
        yield cluster
