"""The most expensive of each kind that a peer may send, or can make a node read before that refuses it."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partialmethod

import msgspec
import pytest
import trio

from tests.agent.p2p.raw import raw_call
from tests.agent.probe import probe
from tests.hostile.attacks import BROKEN, Attacker
from twinshare.agent.p2p import rpc
from twinshare.agent.p2p.libp2p.dht.node import DHT
from twinshare.agent.p2p.libp2p.yamux.connection import YamuxConnection
from twinshare.agent.p2p.libp2p.yamux.frame import ACK, PING, RST, SYN, WINDOW
from twinshare.agent.p2p.libp2p.yamux.frame import encode as encode_yamux
from twinshare.agent.p2p.peer_session import PROTOCOL
from twinshare.agent.simulation import simulated_vm
from twinshare.protocols.access import Role
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.events import VmStateChanged
from twinshare.protocols.frames import MAX_FRAME, Frame, Kind, encode
from twinshare.protocols.membership.statements import LIFETIME, Certificate, Revocation, SignedRevocation
from twinshare.protocols.mesh import GossipUpdate, PeerRecord
from twinshare.protocols.messages import Hello
from twinshare.protocols.pages import MAX_ROWS
from twinshare.protocols.vm import VmStatus

Attack = Callable[[Attacker], Awaitable[None]]
CALL = msgspec.msgpack.encode([30.0, "viewer", None, False, 1, {}, ""])
SEEN = VmStateChanged(id="x", name="vm-1", status=VmStatus.RUNNING)
"""An event after which the victim lists the attacker's VMs again."""


async def send(attacker: Attacker, method: str, arguments: object, times: int = 3) -> None:
    packed = msgspec.msgpack.encode(arguments)
    for _ in range(times):
        with suppress(TwinshareError):
            await raw_call(attacker.member, attacker.founder, method, packed)


async def say(attacker: Attacker, *frames: bytes, hello: bytes | None = None, protocol: str = PROTOCOL) -> None:
    """Write frames on a stream of its own, and take what is answered, for a while."""
    stream = await attacker.member.mesh.require_running().host.open_stream(attacker.founder, protocol)
    first = encode(Frame(Kind.HELLO, 0, "", hello or msgspec.msgpack.encode(Hello(name="x"))))

    async def read() -> None:
        with suppress(*BROKEN):
            while await stream.receive_some(65536):
                pass

    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            with suppress(*BROKEN):
                await stream.send_all(b"".join([first if protocol == PROTOCOL else b"", *frames]))
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
    stream.reset()


def connection(attacker: Attacker) -> YamuxConnection:
    found = [one for one in gc.get_objects() if isinstance(one, YamuxConnection) and one.peer_id == attacker.founder]
    return found[-1]


# -- calls


async def messages(attacker: Attacker) -> None:
    sent: list[dict[str, object]] = [{"text": "x" * 65_000}, {"maps": [{}] * 32_000}]
    for data in sent:
        await send(attacker, "deliver", {"letter": {"message_type": "X", "data": data}}, 5)


async def many_values(attacker: Attacker) -> None:
    for method in ("tell", "list_vms", "create_vm", "update_vm", "no_such_method"):
        await send(attacker, method, {"x": [{}] * 19_000})
        await send(attacker, method, {"x": [{}] * 1_000_000})


async def what_only_a_later_version_could_mean(attacker: Attacker) -> None:
    """A wrong value makes the decoder look at each part of the document by itself."""
    record = {"peer": "x", "addresses": ["a"] * 16, "number": "wrong"}
    await send(attacker, "tell", {"news": {"whereabouts": [record] * 2000}})
    await send(attacker, "update_vm", {"vm": "x", "change": {"labels": {str(each): 5 for each in range(19_000)}}})
    forwards = [{"guest_port": "wrong", "bind": "x"}] * 6000
    await send(attacker, "create_vm", {"spec": {"name": "x", "image": "y", "forwards": forwards}})


# -- gossip


async def statements(attacker: Attacker) -> None:
    fleet, me, now = attacker.member.mesh.context.membership.fleet, attacker.member.peer_id, int(time.time())
    for first in (0, 100, 200):
        signed = [
            attacker.sign(
                Certificate(
                    fleet=fleet, sub=attacker.stranger(), name=f"name-{seq}", role=Role.VIEWER, iat=now,
                    exp=now + LIFETIME, serial=f"{seq:016}", issuer=me, seq=1000 + seq,
                )
            )
            for seq in range(first, first + 100)
        ]  # fmt: skip
        await attacker.gossip(GossipUpdate(members=[(token, *attacker.chain) for token in signed]))
    revocations = [
        SignedRevocation(
            token=attacker.sign(
                Revocation(fleet=fleet, sub=attacker.stranger(), by=me, iat=now, number=seq, seq=5000 + seq)
            ),
            chain=attacker.chain,
        )
        for seq in range(100)
    ]
    await attacker.gossip(GossipUpdate(revocations=revocations))
    await attacker.gossip(GossipUpdate(members=[(f"eyJraWQiOiJ4In0.{n}.{'a' * 1000}",) for n in range(100)]))


async def records(attacker: Attacker) -> None:
    addresses = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(16)]
    record = PeerRecord(peer=attacker.founder, addresses=addresses, number=2**53, token="a" * 4000)
    own = msgspec.structs.replace(record, peer=attacker.member.peer_id)
    for each in (record, own, msgspec.structs.replace(own, token="")):
        await attacker.gossip(GossipUpdate(records=[each] * 100))


async def records_of_the_table(attacker: Attacker) -> None:
    from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record

    key = f"/twinshare/{attacker.founder}".encode()
    put = Message(type=Message.PUT_VALUE, key=key, record=Record(key=key, value=b"a" * 4000))
    find = Message(type=Message.FIND_NODE, key=b"x" * 60_000)
    for message in (put, find):
        data = message.SerializeToString()
        head = bytes([len(data) & 127 | 128, len(data) >> 7 & 127 | 128, len(data) >> 14])
        await say(attacker, *[head + data] * 50, protocol=DHT)


# -- frames


async def small_frames(attacker: Attacker) -> None:
    await say(attacker, encode(Frame(Kind.PING, 0)) * 100_000)
    await say(attacker, encode(Frame(Kind.CALL, 1, "list_vms", CALL)), encode(Frame(Kind.CANCEL, 1)) * 100_000)
    credit = encode(Frame(Kind.CREDIT, 1, "", b"\x01"))
    await say(attacker, encode(Frame(Kind.CALL, 1, "follow_events", CALL)), credit * 50_000)
    await say(attacker, *(encode(Frame(Kind.CALL, number, "no_such", CALL)) for number in range(1, 20_000)))


async def hellos(attacker: Attacker) -> None:
    for hello in ({"versions": [1], "addresses": ["a"] * 30_000}, {"versions": [1] * 39_000}):
        await say(attacker, hello=msgspec.msgpack.encode(hello))


async def frames_of_the_muxer(attacker: Attacker) -> None:
    line = connection(attacker)
    for flags in (SYN, ACK):
        await line._channel.send(encode_yamux(PING, flags, 0, 1) * 40_000)
        await trio.sleep(0.3)
    first = line.session._next_id + 10_000
    opened = [encode_yamux(WINDOW, flags, first + 2 * n, 0) for n in range(20_000) for flags in (SYN, RST)]
    await line._channel.send(b"".join(opened))
    await trio.sleep(0.5)


async def messages_of_noise(attacker: Attacker) -> None:
    """Of one byte each, and of none."""
    channel = connection(attacker)._channel
    data = encode_yamux(PING, ACK, 0, 1) * 2000
    for parts in ([data[at : at + 1] for at in range(len(data))], [b""] * 30_000):
        await channel._pipe.send(b"".join(channel._sealer.seal(part) for part in parts))  # type: ignore[attr-defined]  # the attack
        await trio.sleep(0.3)


# -- answers to what the victim asks


async def a_long_list(attacker: Attacker) -> None:
    attacker.member.vms.update({f"vm-{number}": simulated_vm(f"vm-{number}") for number in range(MAX_ROWS)})
    attacker.member.events.publish(SEEN)
    await trio.sleep(3)
    attacker.member.vms.clear()


async def answer_with(
    serving: rpc._Serving, kind: Kind, body: bytes, number: int, _method: str, _request: object
) -> None:
    serving._session._answer(number, Frame(kind, number, "", body))


async def answers(attacker: Attacker) -> None:
    """A list in one frame, as the first release sends it; errors and operations where a list was asked for."""
    row = msgspec.to_builtins(simulated_vm("x"))
    values: list[object] = [{}] * 19_000
    operation = {
        "id": "x", "kind": "y", "target": "z", "node": "n", "state": "strange", "progress": {}, "result": values,
        "created_at": "2025-05-10T12:00:00Z", "updated_at": "2025-05-10T12:00:00Z", "idempotency_key": "k",
    }  # fmt: skip
    kinds: list[tuple[Kind, object]] = [
        (Kind.RESULT, [{}] * 159_000),
        (Kind.RESULT, [row] * 2500),
        (Kind.RESULT, [{**row, "status": "strange"}] * 2500),
        (Kind.ERROR, {"error": "x", "code": "y", "status": "wrong", "details": {"a": values}}),
        (Kind.DETACHED, operation),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for kind, body in kinds:
            packed = msgspec.msgpack.encode(body)[: MAX_FRAME - 1000]
            patch.setattr(rpc._Serving, "_dispatch", partialmethod(answer_with, kind, packed))
            for serving in list(attacker.member.mesh.require_running()._server._sessions.values()):
                serving.end(TwinshareError("begin again"))
            await trio.sleep(1.5)


async def events(attacker: Attacker) -> None:
    sent: list[dict[str, object]] = [{"x": [{}] * 19_000}, {"x": "y" * 900_000}]
    for data in sent:
        for _ in range(30):
            attacker.member.events.publish(probe("vm.state", **data))
        await trio.sleep(0.5)


ATTACKS: list[Attack] = [
    messages, many_values, what_only_a_later_version_could_mean, statements, records, records_of_the_table,
    small_frames, hellos, frames_of_the_muxer, messages_of_noise, a_long_list, events, answers,
]  # fmt: skip
