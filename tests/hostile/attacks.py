"""What members with bad intentions send, each with the keys and the role that it has: one round of each at a time.

An attack ends whatever it is answered; refusals are what is hoped for, and are counted.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
import trio

from tests.agent.p2p.raw import raw_call
from twinshare.agent.p2p.signing import Signer, open_token
from twinshare.agent.simulation import TABLE, SimulatedNode
from twinshare.protocols.access import Role
from twinshare.protocols.blob import PROTOCOL as BLOB
from twinshare.protocols.console import PROTOCOL as CONSOLE
from twinshare.protocols.errors import TwinshareError
from twinshare.protocols.membership.statements import (
    LIFETIME,
    Certificate,
    Chain,
    Revocation,
    SignedRevocation,
    read_certificate,
)
from twinshare.protocols.mesh import GossipUpdate, PeerRecord
from twinshare.protocols.tunnel import PROTOCOL as TUNNEL

DAY = 86400
ROUND_WITHIN = 20.0
BROKEN = (TwinshareError, trio.BrokenResourceError, trio.ClosedResourceError, OSError, trio.TooSlowError)


@dataclass
class Attacker:
    """A member that attacks `targets`, the peer IDs of honest nodes; the first is the founder."""

    member: SimulatedNode
    role: Role
    targets: list[str]
    addresses: list[tuple[str, int]]
    rng: random.Random
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def target(self) -> str:
        return self.rng.choice(self.targets)

    @property
    def founder(self) -> str:
        return self.targets[0]

    async def send(self, method: str, packed: bytes) -> None:
        """Make a call with these bytes; what it is answered is counted."""
        attack = method
        self.sent[attack] += 1
        try:
            with trio.fail_after(ROUND_WITHIN):
                await raw_call(self.member, self.target, method, packed)
        except BROKEN:
            self.refused[attack] += 1

    async def gossip(self, update: GossipUpdate) -> None:
        await self.send("tell", msgspec.msgpack.encode({"news": update}))

    def sign(self, claims: Certificate | Revocation) -> str:
        return self.member.signer.sign(msgspec.json.encode(claims))

    @property
    def chain(self) -> Chain:
        """The attacker's own certificates."""
        chains = [c for update in self.member.mesh.context.membership.everything() for c in update.members]
        return next(c for c in chains if read_certificate(c[0], open_token).sub == self.member.peer_id)

    def stranger(self) -> str:
        return Signer(self.rng.randbytes(32)).peer_id


async def flood_of_messages(attacker: Attacker) -> None:
    for number in range(20):
        data = {"number": number, "text": "x" * attacker.rng.choice([1, 1000, 60_000])}
        await attacker.send("deliver", msgspec.msgpack.encode({"letter": {"message_type": "X", "data": data}}))


async def messages_past_the_bounds(attacker: Attacker) -> None:
    attempts: list[dict[str, object]] = [{"text": "x" * 1_000_000}, {"maps": [{}] * 900_000}, _nested(400)]
    for data in attempts:
        await attacker.send("deliver", msgspec.msgpack.encode({"letter": {"message_type": "X", "data": data}}))


def _nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


async def random_bytes_to_every_method(attacker: Attacker) -> None:
    for method in attacker.rng.sample(sorted(TABLE), 10):
        await attacker.send(method, attacker.rng.randbytes(attacker.rng.choice([1, 50, 5000])))


async def large_calls_that_are_refused(attacker: Attacker) -> None:
    spec = {"name": "x", "image": "blank", "cloud_init": {"user_data": "#cloud-config\n" + "a: b\n" * 12_000}}
    for method in ("create_vm", "revoke_peer", "create_token", "no_such_method"):
        await attacker.send(method, msgspec.msgpack.encode({"spec": spec, "peer": "x" * 100_000}))


async def calls_at_once(attacker: Attacker) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(attacker.send, "list_vms", msgspec.msgpack.encode({}))


async def certificates_about_the_founder(attacker: Attacker) -> None:
    fleet = attacker.member.mesh.context.membership.fleet
    for ahead in (0, 250, 400 * DAY):
        claims = Certificate(
            fleet=fleet, sub=attacker.founder, name="x", role=Role.VIEWER, iat=int(time.time()) + ahead,
            exp=int(time.time()) + LIFETIME, serial="z" * 16, issuer=attacker.member.peer_id,
            seq=attacker.rng.choice([0, 99, 2**31]),
        )  # fmt: skip
        await attacker.gossip(GossipUpdate(members=[(attacker.sign(claims), *attacker.chain)]))


async def revocations_of_everybody(attacker: Attacker) -> None:
    fleet, chain, me = attacker.member.mesh.context.membership.fleet, attacker.chain, attacker.member.peer_id
    victims = [*attacker.targets, *(attacker.stranger() for _ in range(60))]
    revocations = [
        SignedRevocation(
            token=attacker.sign(
                Revocation(fleet=fleet, sub=sub, by=me, iat=int(time.time()), number=number, seq=number)
            ),
            chain=chain,
        )
        for number, sub in enumerate(victims, attacker.rng.choice([1, 100, 2**31]))
    ]  # fmt: skip
    await attacker.gossip(GossipUpdate(revocations=revocations))


async def signatures_that_are_wrong(attacker: Attacker) -> None:
    await attacker.gossip(GossipUpdate(members=[(f"eyJraWQiOiJ4In0.{number}.aaaa",) for number in range(100)]))


async def false_addresses(attacker: Attacker) -> None:
    records = [
        PeerRecord(peer=peer, addresses=[f"/ip4/10.1.2.{number}/tcp/22" for number in range(16)], number=2**53)
        for peer in (*attacker.targets, *(attacker.stranger() for _ in range(80)))
    ]
    await attacker.gossip(GossipUpdate(records=records))


async def streams_that_say_nothing(attacker: Attacker) -> None:
    host = attacker.member.mesh.require_running().host
    streams = []
    for protocol in (TUNNEL, CONSOLE, BLOB) * 10:
        attacker.sent["streams"] += 1
        try:
            with trio.fail_after(2):
                streams.append(await host.open_stream(attacker.target, protocol))
                await streams[-1].send_all(attacker.rng.randbytes(attacker.rng.choice([1, 4, 3000])))
        except BROKEN:
            attacker.refused["streams"] += 1
    await trio.sleep(0.2)
    for stream in streams:
        stream.reset()


async def connections_of_strangers(attacker: Attacker) -> None:
    """Connections to the peers' port that never finish a handshake."""
    streams = []
    for _ in range(40):
        attacker.sent["connections"] += 1
        try:
            with trio.fail_after(2):
                streams.append(await trio.open_tcp_stream(*attacker.rng.choice(attacker.addresses)))
                await streams[-1].send_all(attacker.rng.randbytes(attacker.rng.choice([1, 20, 2000])))
        except BROKEN:
            attacker.refused["connections"] += 1
    for stream in streams:
        await trio.aclose_forcefully(stream)


async def what_belongs_to_others(attacker: Attacker) -> None:
    for method, arguments in (
        ("delete_vm", {"vm": "honest", "force": True}),
        ("stop_vm", {"vm": "honest", "force": True}),
        ("update_vm", {"vm": "honest", "change": {"labels": {"owned": "yes"}}}),
        ("add_forward", {"vm": "honest", "forward": {"guest_port": 22, "bind": "0.0.0.0"}}),  # noqa: S104 - the attack
        ("remove_image", {"name": "blank"}),
        ("prune_images", {"unused": True}),
    ):
        await attacker.send(method, msgspec.msgpack.encode(arguments))


async def labels_that_fill_a_listing(attacker: Attacker) -> None:
    name = f"evil-{attacker.member.number}"
    labels = {f"label-{number}": "x" * 255 for number in range(64)}
    spec = {"name": name, "image": "blank", "memory": 64, "disk_size": 1, "cpu_cores": 1, "labels": labels}
    await attacker.send("create_vm", msgspec.msgpack.encode({"spec": spec}))
    await attacker.send("delete_vm", msgspec.msgpack.encode({"vm": name, "force": True}))


Attack = Callable[[Attacker], Awaitable[None]]
ATTACKS: dict[Role, tuple[Attack, ...]] = {
    Role.VIEWER: (
        flood_of_messages, messages_past_the_bounds, random_bytes_to_every_method, large_calls_that_are_refused,
        calls_at_once, certificates_about_the_founder, revocations_of_everybody, signatures_that_are_wrong,
        false_addresses, streams_that_say_nothing, connections_of_strangers, what_belongs_to_others,
    ),
    Role.OPERATOR: (
        flood_of_messages, messages_past_the_bounds, large_calls_that_are_refused, calls_at_once,
        certificates_about_the_founder, revocations_of_everybody, false_addresses, what_belongs_to_others,
        labels_that_fill_a_listing,
    ),
    # An admin may work on all VMs; it must not harm the founder and the other admins as members.
    Role.ADMIN: (
        flood_of_messages, messages_past_the_bounds, calls_at_once, certificates_about_the_founder,
        revocations_of_everybody, signatures_that_are_wrong, false_addresses, connections_of_strangers,
    ),
}  # fmt: skip


async def _nothing(_: Attacker) -> None:
    await trio.sleep(1)


async def attack(attacker: Attacker, seconds: float, only: str = "") -> None:
    """Attack in turn, at random, for so long; with `only` by the attack of that name."""
    attacks = [each for each in ATTACKS[attacker.role] if only in {"", each.__name__}] or [_nothing]
    with trio.move_on_after(seconds):
        while True:
            with trio.move_on_after(ROUND_WITHIN):
                await attacker.rng.choice(attacks)(attacker)
