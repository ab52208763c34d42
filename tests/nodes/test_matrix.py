"""The matrix of trust: each operation and stream x each role and principal x here and through a peer.

The cells are generated from the table of operations. What is expected follows from SECURITY.md alone: the role that the
table names, nothing local through a peer, and for what changes, opens or looks into somebody's own: only its owner, the
node's own user of a token's things, and admins. A call counts as allowed when anything but `Forbidden` comes of it;
journalled ones are stopped once they are admitted, so no cell changes what another sees.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.agent.nodes import spec
from tests.nodes.test_in_memory import call, open_fleet
from twinshare.agent.images.contract_samples import pieces, raw_disk
from twinshare.agent.journal.store import JournalStore
from twinshare.agent.limits import Meter
from twinshare.agent.node import Node
from twinshare.agent.reach.remote_console import open_remote_console
from twinshare.agent.reach.tunnel import ask_on_stream
from twinshare.protocols.access import LOCAL_ADMIN, Caller, Limits, Role
from twinshare.protocols.blob import PROTOCOL as BLOB
from twinshare.protocols.blob import BlobAnswer, BlobRequest
from twinshare.protocols.console import SCREEN_PROTOCOL, ConsoleRequest
from twinshare.protocols.errors import OperationCancelled, TwinshareError, Unavailable
from twinshare.protocols.guest import DirectoryRequest, ExecRequest
from twinshare.protocols.guest_service import GuestService
from twinshare.protocols.image import PullRequest, PushRequest
from twinshare.protocols.messages import Follow
from twinshare.protocols.method import Method
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.operation import OperationState
from twinshare.protocols.peer import InviteRequest, Message
from twinshare.protocols.peer_service import PeerService
from twinshare.protocols.services import TokenService
from twinshare.protocols.vm import ForwardSpec, VmChange

VIEWER, OPERATOR, ADMIN = Role
MINE, OTHERS, USERS = "token:mine", "token:others", "local"
LOOKS_INTO = {"vm_log", "vm_screenshot"}
"""Reads of what a guest says and shows: its owner's, as no other read of the table is."""
OWNED = ("vm", "image", "id")
"""Parameters that name what has an owner."""
ROWS_AT_LEAST = 2000

Attempt = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Asker:
    """Who calls: at the node itself when `peer` is None, else a peer, for its user or for a token of its own."""

    peer: Node | None
    caller: Caller
    principal: str
    role: Role

    def __str__(self) -> str:
        return (
            f"{self.caller.principal} as {self.caller.role} {'through a peer' if self.peer else 'here'} ({self.role})"
        )


@dataclass(frozen=True)
class Cell:
    """One attempt, and whether it is to be allowed."""

    what: str
    asker: Asker
    owner: str
    allowed: bool
    attempt: Attempt


@dataclass(frozen=True)
class Target:
    """The node that is asked, and for each owner a VM, an image and an operation that has ended, all of one name."""

    node: Node
    things: dict[str, tuple[str, str]]

    def arguments(self, method: Method, owner: str) -> dict[str, Any]:
        """Arguments with which the method is about what `owner` has. A KeyError: a new parameter needs its value."""
        name, operation = self.things[owner]
        values: dict[str, Any] = {
            "vm": name, "image": name, "id": operation, "peer": "nobody", "spec": spec("new"), "change": VmChange(),
            "forward": ForwardSpec(host_port=0, guest_port=80), "host_port": 9, "name": "new-name",
            "token": TokenRequest(name="new"), "message": Message(peer_id="nobody", message_type="x", data={}),
            "invite": InviteRequest(), "ticket": "none",
            "session": "0" * 16, "signal": "TERM",
            "request": {
                "pull_image": PullRequest(image="none"), "push_image": PushRequest(image=name, target="r.example/x"),
                "exec_vm": ExecRequest(command=["true"]), "make_directory": DirectoryRequest(path="/x"),
            },
        }  # fmt: skip
        needed = [field.name for field in msgspec.structs.fields(method.args) if field.required]
        chosen = {one: values[one] for one in needed}
        if "request" in chosen:
            chosen["request"] = values["request"][method.name]
        if method.name == "remove_file":
            chosen["path"] = "/x"  # this or its other form
        return chosen


def owns(asker: Asker, owner: str) -> bool:
    """What SECURITY.md says: its own, what its own tokens made at a peer, everything for an admin."""
    return asker.role is ADMIN or owner == asker.principal or owner.startswith(f"{asker.principal}/")


def expected(method: Method, asker: Asker, owner: str) -> bool:
    """Return whether the call is to be allowed."""
    if method.local and asker.peer is not None:
        return False
    if list(Role).index(asker.role) < list(Role).index(method.role):
        return False
    return owns(asker, owner) if is_owned(method) else True


def is_owned(method: Method) -> bool:
    names = {field.name for field in msgspec.structs.fields(method.args)} & {*OWNED}
    return bool(names) and (method.mutates or method.name in LOOKS_INTO or method.service is GuestService)


def askers(node: Node, peers: list[Node]) -> Iterator[Asker]:
    yield Asker(None, LOCAL_ADMIN, USERS, ADMIN)
    for role in Role:
        yield Asker(None, Caller(principal=MINE, role=role), MINE, role)
    for peer, certified in zip(peers, Role, strict=True):
        yield Asker(peer, LOCAL_ADMIN, peer.peer_id, certified)
        for role in Role:
            caller = Caller(principal=MINE, role=role)
            yield Asker(peer, caller, f"{peer.peer_id}/{MINE}", min(role, certified, key=list(Role).index))


async def make(node: Node, owner: str, number: int) -> tuple[str, str]:
    """A VM, an image and an operation of one owner."""
    caller = Caller(principal=owner, role=ADMIN, from_peer=":" not in owner and owner != USERS)
    name = f"thing-{number}"
    await call(node, "create_vm", None, caller, spec=spec(name))
    await node.import_image(caller, name, pieces(raw_disk(50 + number)))
    [made] = [each.id for each in await node.operations.list(OperationState.DONE) if each.target == name]
    return name, made


class Stopping:
    """Stands for a service whose methods are not to be carried out: the role was checked before."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def stop(**_arguments: Any) -> None:
            raise Unavailable("the matrix stops here")

        return stop


@asynccontextmanager
async def open_target(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Target, list[Asker]]]:
    async with open_fleet(folder, *Role, limits=Limits()) as (_, (node, *peers)):
        owners = [USERS, MINE, OTHERS]
        for peer in peers:
            owners += [peer.peer_id, f"{peer.peer_id}/{MINE}", f"{peer.peer_id}/{OTHERS}"]
        things = {owner: await make(node, owner, number) for number, owner in enumerate(owners)}

        async def stop(store: JournalStore, active: object, *, makes_room: bool) -> None:
            # Not `Unavailable`: what makes room on the disk would run without the journal.
            raise OperationCancelled("the matrix stops here")

        monkeypatch.setattr(JournalStore, "insert", stop)
        monkeypatch.setattr(Meter, "charge", lambda *_: None)  # thousands of calls a second, which budgets refuse
        for service in (PeerService, TokenService):
            monkeypatch.setitem(node.dispatcher._factories, service, lambda _caller: Stopping())
        yield Target(node, things), list(askers(node, peers))


def calls(target: Target, everybody: list[Asker]) -> Iterator[Cell]:
    """Each operation of the table."""
    for method, asker in product(target.node.dispatcher.table.values(), everybody):
        for owner in target.things if is_owned(method) else [USERS]:
            arguments = target.arguments(method, owner)
            attempt: Attempt = partial(target.node.dispatcher.call, asker.caller, method, arguments)
            if asker.peer is not None:
                # Over the session itself: the caller's own node would refuse some before.
                attempt = partial(
                    asker.peer.mesh.require_running().calls.call, target.node.peer_id, method, arguments, asker.caller
                )
            yield Cell(method.name, asker, owner, expected(method, asker, owner), attempt)


def streams(target: Target, everybody: list[Asker]) -> Iterator[Cell]:
    """Each kind of stream beside calls: consoles, screens, tunnels, images, events."""
    for asker, owner in product(everybody, target.things):
        may = asker.role is not VIEWER and owns(asker, owner)
        vm = target.things[owner][0]
        yield Cell("console", asker, owner, may, partial(attach, target.node, asker, vm))
        yield Cell("screen", asker, owner, may, partial(look, target.node, asker, vm))
        if asker.peer is not None:
            probe = partial(asker.peer.tunnels.probe, target.node.peer_id, vm, 80, asker.caller)
            yield Cell("tunnel", asker, owner, may, probe)
    for asker in everybody:
        if asker.peer is not None and asker.caller is LOCAL_ADMIN:
            yield Cell("blob", asker, USERS, True, partial(read_blob, target.node, asker.peer))
            yield Cell("events", asker, USERS, True, partial(follow, target.node, asker.peer))


async def attach(node: Node, asker: Asker, vm: str) -> None:
    if asker.peer is None:
        async with node.console(asker.caller, vm):
            return
    # Over the stream itself: the caller's own node would refuse before.
    request = ConsoleRequest(vm=vm, role=asker.caller.role, principal=asker.caller.delegate)
    async with open_remote_console(asker.peer.mesh.client, node.peer_id, request):
        return


async def look(node: Node, asker: Asker, vm: str) -> None:
    if asker.peer is None:
        async with node.screen(asker.caller, vm):
            return
    request = ConsoleRequest(vm=vm, role=asker.caller.role, principal=asker.caller.delegate)
    async with open_remote_console(asker.peer.mesh.client, node.peer_id, request, SCREEN_PROTOCOL):
        return


async def read_blob(node: Node, peer: Node) -> None:
    digest = (await call(node, "get_image", image="disk")).digest
    _, stream = await ask_on_stream(peer.mesh.client, node.peer_id, BLOB, BlobRequest(digest=digest), BlobAnswer)
    stream.reset()


async def follow(node: Node, peer: Node) -> None:
    session = await peer.mesh.require_running().sessions.session_to(node.peer_id)
    async with session.follow(Follow(types=["vm."])):
        return


async def wrong(cell: Cell) -> str:
    """What is wrong with a cell, or ""."""
    code = "done"
    try:
        await cell.attempt()
    except TwinshareError as error:
        code = error.code
    if (code != "forbidden") is cell.allowed:
        return ""
    return f"{cell.what} by {cell.asker} on what {cell.owner} owns: {code}, and it should be {cell.allowed=}"


async def test_every_cell_is_as_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_target(tmp_path, monkeypatch) as (target, everybody):
        cells = [*calls(target, everybody), *streams(target, everybody)]
        faults: list[str] = []
        limiter = trio.CapacityLimiter(48)

        async def look(cell: Cell) -> None:
            async with limiter:
                if fault := await wrong(cell):
                    faults.append(fault)

        async with trio.open_nursery() as nursery:
            for cell in cells:
                nursery.start_soon(look, cell)
        counted = Counter(cell.allowed for cell in cells)
        assert faults == [], f"{len(faults)} of {len(cells)}:\n" + "\n".join(faults[:40])
        assert len(cells) >= ROWS_AT_LEAST
        assert min(counted.values()) > len(cells) // 5, counted
        if os.environ.get("TWINSHARE_TEST_COUNTS"):
            print(len(cells), dict(counted), len({cell.what for cell in cells}))
