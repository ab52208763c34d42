"""A fleet in one process, on a network in memory and a virtual clock: for tests, and for asking what happens if.

    from trio.testing import MockClock
    from twinshare.agent.testing import open_cluster

    async def main():
        async with open_cluster(5, seed=7) as cluster:
            cluster.network.partition([cluster[0].peer_id], [node.peer_id for node in cluster.nodes[1:]])
            print(await cluster.until(lambda: cluster.converged(1, 2, 3, 4), 60), "virtual seconds")

    trio.run(main, clock=MockClock(autojump_threshold=0))

The meshes are the real ones: membership, sessions, calls, gossip. Under each there is no hypervisor but a table of VM
records, because a virtual clock must not wait for threads. The same seed gives the same run.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import trio

from ..protocols.access import LOCAL, LOCAL_ADMIN, Caller, Role
from ..protocols.errors import P2pStopped, VmNotFound
from ..protocols.events import Event, EventPayload, VmStateChanged, reset_event
from ..protocols.method import Method
from ..protocols.peer import InviteRequest
from ..protocols.peer_service import PeerService
from ..protocols.services import SERVICES
from ..protocols.table import Dispatcher, all_methods, stub
from ..protocols.vm import Vm, VmSpec, VmStatus
from .background import open_background
from .p2p.context import Served
from .p2p.membership_view import Override
from .p2p.memory import MemoryNetwork, open_memory_host
from .p2p.mesh import Mesh, MeshSettings, make_mesh_client, open_mesh
from .p2p.offload import in_place
from .p2p.signing import Signer
from .p2p.store import MemoryKeyValueStore

START = datetime(2025, 5, 10, 12, tzinfo=UTC)
"""The time of day when a simulation begins."""
TABLE = all_methods(SERVICES)
MAX_EVENTS = 10_000
LOOK_EVERY = 0.05


def now() -> datetime:
    """The time of day on the virtual clock."""
    return START + timedelta(seconds=trio.current_time())


def simulated_vm(name: str, spec: VmSpec | None = None) -> Vm:
    """The record of a VM that runs, as far as anybody can tell."""
    spec = spec or VmSpec(name=name, image="tiny")
    return Vm(
        id=f"id-{name}",
        name=name,
        status=VmStatus.RUNNING,
        cpu_cores=spec.cpu_cores,
        memory=spec.memory,
        disk_size=spec.disk_size,
        hypervisor="qemu",
        network=spec.network,
        vnc_port=None,
        created_at=START,
    )


class MemoryEvents:
    """A node's events, in memory: what `EventLog` is on disk. A listener that stops reading is cut off."""

    def __init__(self) -> None:
        self.kept: list[Event] = []
        self._listeners: set[trio.MemorySendChannel[Event]] = set()

    def publish(self, payload: EventPayload, principal: str = LOCAL) -> None:
        data = msgspec.to_builtins(payload)
        event = Event(id=len(self.kept) + 1, type=str(payload.event), at=now(), data=data)
        self.kept.append(event)
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except trio.WouldBlock:
                self._listeners.discard(listener)
                listener.close()

    @asynccontextmanager
    async def subscribe(self, after: int | None = None) -> AsyncIterator[trio.MemoryReceiveChannel[Event]]:
        """What comes, and first what is kept after the number `after`."""
        missed = [event for event in self.kept if after is not None and event.id > after]
        if after is not None and after > len(self.kept):
            missed = [reset_event(len(self.kept), now())]
        send, receive = trio.open_memory_channel[Event](MAX_EVENTS + len(missed))
        for event in missed:
            send.send_nowait(event)
        self._listeners.add(send)
        try:
            yield receive
        finally:
            self._listeners.discard(send)
            send.close()
            receive.close()


@dataclass
class SimulatedNode:
    """One node: what outlives it, and its mesh while it runs. `done` are the operations that were called on it.

    `clock`: seconds by which its clock is ahead.
    """

    number: int
    signer: Signer
    overrides: dict[str, Override] = field(default_factory=dict)
    store: MemoryKeyValueStore = field(default_factory=MemoryKeyValueStore)
    vms: dict[str, Vm] = field(default_factory=dict)
    events: MemoryEvents = field(default_factory=MemoryEvents)
    done: list[tuple[Caller, str]] = field(default_factory=list)
    clock: float = 0.0
    running: Mesh | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def peer_id(self) -> str:
        return self.signer.peer_id

    @property
    def mesh(self) -> Mesh:
        """Raises: P2pStopped when the node does not run."""
        if self.running is None:
            raise P2pStopped(f"{self.name} does not run")
        return self.running

    @property
    def online(self) -> set[str]:
        """The IDs of the peers that this node sees online."""
        running = self.running and self.running.running
        return {session.peer_id for session in running.sessions.live} if running else set()

    async def call(self, name: str, caller: Caller = LOCAL_ADMIN, **arguments: Any) -> Any:
        """An operation of this node, by one of its own users."""
        return await self.mesh.dispatcher.call(caller, TABLE[name], arguments)

    async def ask(self, peer: str, name: str, caller: Caller = LOCAL_ADMIN, **arguments: Any) -> Any:
        """An operation of a peer, by one of this node's users."""
        return await self.mesh.call(peer, TABLE[name], arguments, caller)

    def dispatcher(self) -> Dispatcher:
        """Every operation of the table; those on VMs work on the records."""

        def bind(service: type, caller: Caller) -> Any:
            return stub(service, partial(self._do, caller))

        return Dispatcher({service: partial(bind, service) for service in SERVICES if service is not PeerService})

    async def _do(self, caller: Caller, method: Method, arguments: Mapping[str, Any]) -> Any:
        await trio.lowlevel.checkpoint()
        self.done.append((caller, method.name))
        if method.name == "list_vms":
            return list(self.vms.values())
        if method.name == "wait_operation":
            await trio.sleep(arguments["timeout"])
        spec = arguments.get("spec")
        name = spec.name if spec else arguments.get("vm", "")
        if method.name == "create_vm":
            self.vms[name] = simulated_vm(name, spec)
            made = self.vms[name]
            self.events.publish(VmStateChanged(id=made.id, name=name, status=made.status))
        if name not in self.vms:
            raise VmNotFound(f"no VM is called '{name}' here", name=name)
        return self.vms.pop(name) if method.name == "delete_vm" else self.vms[name]


class Cluster:
    """Made by `open_cluster`. `network` cuts, partitions and delays; `rng` is the seed's."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, seed: int, peer_timeout: float) -> None:
        self.network, self.rng, self.peer_timeout = network, random.Random(seed), peer_timeout  # noqa: S311 - repeats
        # Keepalives of a simulated day cost time: with a long `peer_timeout` and a short `connection_timeout` only the
        # network notices a silent peer.
        self.connection_timeout = peer_timeout
        self.nodes: list[SimulatedNode] = []
        self._nursery = nursery

    def __getitem__(self, number: int) -> SimulatedNode:
        return self.nodes[number]

    async def add(self, overrides: Mapping[str, Override] | None = None) -> SimulatedNode:
        """Start a node that is in no fleet but its own."""
        number = len(self.nodes)
        seed = b"node" + number.to_bytes(28, "big")
        self.nodes.append(SimulatedNode(number, Signer(seed), dict(overrides or {})))
        return await self.start(number)

    async def start(self, number: int) -> SimulatedNode:
        """Start a node (again), at an address that it never had."""
        node = self.nodes[number]
        node.scope, node.ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._live, node)
        return node

    async def kill(self, number: int) -> None:
        """As kill -9 does: nothing is said or saved any more."""
        self.nodes[number].scope.cancel()
        await self.nodes[number].ended.wait()

    async def join(self, joiner: SimulatedNode, inviter: SimulatedNode, role: Role = Role.ADMIN) -> None:
        """By a ticket, as users do."""
        ticket = await inviter.call("invite_peer", invite=InviteRequest(role=role))
        await joiner.call("join_fleet", ticket=ticket.ticket)

    async def grow(self, number: int) -> None:
        """Add nodes until there are `number`, each let in by the first as an admin."""
        while len(self.nodes) < number:
            node = await self.add()
            if node.number:
                await self.join(node, self.nodes[0])

    def converged(self, *numbers: int) -> bool:
        """Whether these nodes (all that run, by default) see each other online, and nobody else."""
        chosen = [self.nodes[number] for number in numbers] or [node for node in self.nodes if node.running]
        everybody = {node.peer_id for node in chosen}
        return all(node.online == everybody - {node.peer_id} for node in chosen)

    async def until(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait for a condition; tells how many seconds that took. Raises: TooSlowError."""
        began = trio.current_time()
        with trio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - on a virtual clock looking costs nothing
                await trio.sleep(LOOK_EVERY)
        return trio.current_time() - began

    async def _live(self, node: SimulatedNode, task_status: trio.TaskStatus[None]) -> None:
        try:
            with node.scope:
                settings = MeshSettings(
                    open_host=lambda gate: open_memory_host(
                        self.network, node.peer_id, gate, peer_timeout=self.connection_timeout
                    ),
                    signer=node.signer,
                    name=node.name,
                    agent="twinshare/simulation",
                    store=node.store,
                    events=node.events.subscribe,
                    publish=node.events.publish,
                    now=lambda: now().timestamp() + node.clock,
                    overrides=node.overrides,
                    peer_timeout=self.peer_timeout,
                    rng=random.Random(self.rng.random()),  # noqa: S311 - it must repeat
                    offload=in_place,
                )
                client = await make_mesh_client(settings)
                async with open_mesh(client, Served(node.dispatcher())) as node.running:
                    await node.running.start()
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            node.running = None
            node.ended.set()


@asynccontextmanager
async def open_cluster(
    number: int = 0, *, seed: int = 0, peer_timeout: float = 15.0, network: MemoryNetwork | None = None
) -> AsyncIterator[Cluster]:
    """A fleet of `number` nodes named node-0 and so on, all admins, that see each other.

    `peer_timeout` is after how many seconds a silent peer is gone; `network` may have delays of its own.
    """
    async with open_background() as nursery:
        cluster = Cluster(nursery, network or MemoryNetwork(), seed, peer_timeout)
        await cluster.grow(number)
        await cluster.until(cluster.converged, 60)
        yield cluster
