"""Every operation of the table, called by a member of every role, by one that was put out, and by a stranger."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from twinshare.agent.p2p.membership_view import Override
from twinshare.agent.p2p.peer_session import PeerSession, open_peer_session
from twinshare.agent.simulation import TABLE, Cluster, SimulatedNode, open_cluster
from twinshare.protocols.access import Role
from twinshare.protocols.errors import Forbidden, PeerUnreachable, TwinshareError, Unsupported
from twinshare.protocols.mesh import JoinService, MeshService
from twinshare.protocols.messages import Hello, Request
from twinshare.protocols.method import Method
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.table import methods

SAMPLES: dict[str, Any] = {
    "str": "abc",
    "int": 80,
    "float": 1.0,
    "bool": True,
    "datetime": datetime(2025, 5, 10, tzinfo=UTC),
    "bytes": b"x",
}


SESSION = {"session": "0123456789abcdef"}
CHOSEN: dict[str, dict[str, Any]] = {
    "exec_vm": {"request": {"command": ["true"]}},
    "get_session": SESSION,
    "end_vm_session": SESSION,
    "signal_session": SESSION | {"signal": "TERM"},
}
"""Arguments of which any value of the type is not enough."""


def sample(kind: Any) -> Any:
    """Some value of a type, as msgpack would carry it."""
    info = msgspec.inspect.type_info(kind)
    return _sample(info)


def _sample(info: Any) -> Any:
    match info:
        case msgspec.inspect.Metadata():
            return _sample(info.type)
        case msgspec.inspect.StructType():
            return {field.encode_name: _sample(field.type) for field in info.fields if field.required}
        case msgspec.inspect.UnionType():
            return None
        case msgspec.inspect.EnumType():
            return next(iter(info.cls)).value
        case msgspec.inspect.DictType():
            return {}
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return [_sample(info.item_type)]
    return SAMPLES[type(info).__name__.removesuffix("Type").lower()]


def request(method: Method) -> Request:
    packed = msgspec.msgpack.encode(sample(method.args) | CHOSEN.get(method.name, {}))
    return Request(30.0, Role.ADMIN, None, False, 0, msgspec.Raw(packed))


async def outcome(session: PeerSession, method: Method) -> str:
    """What became of a call: `done` stands for anything but a refusal."""
    try:
        await session.call(method.name, request(method))
    except Forbidden as error:
        return "local" if "own users" in error.message else "forbidden"
    except TwinshareError:
        return "done"
    return "done"


async def cluster_with(cluster: Cluster, role: Role) -> SimulatedNode:
    await cluster.add()
    member = await cluster.add()
    await cluster.join(member, cluster[0], role)
    await cluster.until(cluster.converged, 10)
    return member


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("lowered", [None, Role.VIEWER, Role.OPERATOR])
async def test_every_operation_at_every_role(role: Role, lowered: Role | None, autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        member = await cluster_with(cluster, role)
        cluster[0].mesh.context.membership._overrides = {member.peer_id: Override(role=lowered)}
        session = await member.mesh.require_running().sessions.session_to(cluster[0].peer_id)
        effective = role.at_most(lowered) if lowered else role
        for method in TABLE.values():
            cluster[0].done.clear()
            expected = "local" if method.local else "done" if effective.includes(method.role) else "forbidden"
            assert await outcome(session, method) == expected, method.name
            assert bool(cluster[0].done) == (expected == "done"), method.name
            assert all(caller.principal == member.peer_id for caller, _ in cluster[0].done)


async def test_a_peer_that_is_denied_and_one_that_was_put_out_reach_nothing(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        member = await cluster_with(cluster, Role.ADMIN)
        running = member.mesh.require_running()
        session = await running.sessions.session_to(cluster[0].peer_id)
        cluster[0].mesh.context.membership._overrides = {member.peer_id: Override(deny=True)}
        cluster[0].done.clear()
        for method in TABLE.values():
            with pytest.raises(Forbidden, match="no member"):
                await session.call(method.name, request(method))
        await cluster[0].call("revoke_peer", peer=member.peer_id)
        await trio.sleep(2)
        for method in TABLE.values():
            with pytest.raises(TwinshareError):
                await session.call(method.name, request(method))
        assert cluster[0].done == []


async def test_a_stranger_with_a_ticket_reaches_the_join_server_alone(autojump_clock: MockClock) -> None:
    async with open_cluster(1) as cluster:
        await cluster[0].call("invite_peer", invite=InviteRequest())
        stranger = await cluster.add()
        host = stranger.mesh.require_running().host
        target = cluster[0].mesh.require_running().host
        with stranger.mesh.context.joining(target.peer_id):
            await host.connect(target.peer_id, target.addresses)
            with pytest.raises((Unsupported, PeerUnreachable)):
                async with open_peer_session(host, target.peer_id, Hello(), 5):
                    pass
            async with open_peer_session(host, target.peer_id, Hello(), 5, "/twinshare/join/1.0.0") as joining:
                for method in [*TABLE.values(), *methods(MeshService).values()]:
                    with pytest.raises(Unsupported):
                        await joining.call(method.name, request(method))
                with pytest.raises(Unsupported):
                    await joining.call("follow_events", request(methods(JoinService)["greet"]))
                for method in methods(JoinService).values():
                    await outcome(joining, method)
        assert cluster[0].done == []
        assert await cluster[0].call("list_peers") == []
