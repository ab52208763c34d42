"""Write `wire.json` and `certificates.json` of a golden folder: what this version sends to its peers, byte for byte.

Run once for each form of the wire, by `record.py`. The keys sign nothing but these.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.golden.plain import CALLS, ERRORS, EVENTS, NOON, OPERATION
from twinshare.agent.p2p.records import make_record
from twinshare.agent.p2p.signing import Signer
from twinshare.protocols import blob, console, tunnel
from twinshare.protocols.errors import ErrorBody, TwinshareError
from twinshare.protocols.events import Event
from twinshare.protocols.frames import Frame, Kind, encode
from twinshare.protocols.membership.statements import Certificate, Revocation
from twinshare.protocols.mesh import JoinService, MeshService, PeerRecord
from twinshare.protocols.messages import Follow, Hello, Request, pack_error
from twinshare.protocols.operation import Operation
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.ticket import TicketContent, encode_ticket

TABLE = all_methods([*SERVICES, MeshService, JoinService])
FOUNDER, ADMIN, MEMBER = (
    Signer(name.ljust(32, b".")) for name in (b"golden founder", b"golden admin", b"golden member")
)
BORN, LIFETIME = 1_746_878_400, 30 * 86400  # noon of 2025-05-10

Entry = dict[str, Any]


def entry(name: str, form: str, data: bytes, meaning: Any) -> Entry:
    return {"name": name, "form": form, "hex": data.hex(), "meaning": meaning}


def frame(name: str, kind: Kind, id: int, body: Any, *, method: str = "", packed: bytes | None = None) -> Entry:
    """`body` is what the frame's body means, `packed` its bytes."""
    data = encode(Frame(kind, id, method, packed or b""))
    return entry(name, "frame", data, {"kind": kind.name, "id": id, "method": method, "body": body})


def call(number: int, name: str, arguments: Entry) -> Entry:
    method = TABLE[name]
    given = msgspec.convert(arguments, method.args)
    packed = method.pack({field: getattr(given, field) for field in method.args.__struct_fields__})
    head = {"timeout": 30.5, "role": "operator", "key": "the-key", "detach": True, "credit": 0}
    request = msgspec.convert([*head.values(), msgspec.Raw(packed)], Request)
    return frame(
        f"call {name}", Kind.CALL, number, head | {"arguments": arguments}, method=name,
        packed=msgspec.msgpack.encode(request),
    )  # fmt: skip


def result(number: int, name: str, answer: Any) -> Entry:
    value = msgspec.convert(answer, TABLE[name].result)
    return frame(f"answer {name}", Kind.RESULT, number, {"of": name, "answer": answer}, packed=pack(value))


def pack(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def certificates() -> Entry:
    """A chain of three, a revocation by the founder and one by an admin."""

    def certificate(signer: Signer, sub: Signer, name: str, role: str, limits: Entry) -> tuple[str, Entry]:
        claims = {
            "fleet": FOUNDER.peer_id, "sub": sub.peer_id, "name": name, "role": role, "iat": BORN,
            "exp": BORN + LIFETIME, "serial": "00112233aabbccdd", "limits": limits,
        }  # fmt: skip
        return signer.sign(msgspec.json.encode(msgspec.convert(claims, Certificate))), claims

    def revocation(signer: Signer, sub: Signer, number: int) -> tuple[str, Entry]:
        claims = {
            "fleet": FOUNDER.peer_id, "sub": sub.peer_id, "by": signer.peer_id, "iat": BORN + 60, "number": number,
        }  # fmt: skip
        return signer.sign(msgspec.json.encode(msgspec.convert(claims, Revocation))), claims

    limits = {
        "vms": 5, "cpu": 8, "memory": 4096, "disk": 100, "image_bytes": 1 << 30, "operations_per_minute": 60,
        "operations_at_once": 4,
    }  # fmt: skip
    first = certificate(FOUNDER, ADMIN, "admin", "admin", limits)
    second = certificate(ADMIN, MEMBER, "member", "operator", limits | {"vms": 2})
    own = certificate(FOUNDER, FOUNDER, "founder", "admin", {})
    by_founder, by_admin = revocation(FOUNDER, MEMBER, 1), revocation(ADMIN, MEMBER, 1)
    return {
        "fleet": FOUNDER.peer_id,
        "at": BORN + 3600,
        "chains": [
            {"tokens": [own[0]], "claims": [own[1]]},
            {"tokens": [first[0]], "claims": [first[1]]},
            {"tokens": [second[0], first[0]], "claims": [second[1], first[1]]},
        ],
        "revocations": [
            {"token": by_founder[0], "chain": [], "claims": by_founder[1]},
            {"token": by_admin[0], "chain": [first[0]], "claims": by_admin[1]},
        ],
    }


def tickets() -> Iterator[Entry]:
    meaning: Entry = {
        "inviter": FOUNDER.peer_id, "id": b"ticket".hex(), "secret": bytes(range(16)).hex(), "expires": BORN + 600,
        "addresses": ["/ip4/192.0.2.7/tcp/4001", "/ip6/2001:db8::7/tcp/4001", "/dns4/host.example/tcp/4001"],
    }  # fmt: skip
    content = TicketContent(
        inviter=FOUNDER.peer_id, id=b"ticket", secret=bytes(range(16)), expires=BORN + 600,
        addresses=tuple(meaning["addresses"]),
    )  # fmt: skip
    proofs = {side: content.proof(side, MEMBER.peer_id, b"i" * 16, b"j" * 16).hex() for side in ("inviter", "joiner")}
    yield {"text": encode_ticket(content), "meaning": meaning, "joiner": MEMBER.peer_id, "proofs": proofs}


def mesh(signed: Entry) -> dict[str, tuple[Entry, Any]]:
    chain = signed["chains"][2]["tokens"]
    revocations = [{"token": each["token"], "chain": each["chain"]} for each in signed["revocations"]]
    where = {"peer": MEMBER.peer_id, "addresses": ["/ip4/192.0.2.7/tcp/4001"], "number": 1_746_878_400_123}
    news = {"members": [chain], "revocations": revocations, "whereabouts": [where]}
    proof = base64.b64encode(bytes(32)).decode()
    return {
        "tell": ({"news": news}, None),
        "renew": ({}, chain),
        "join": (
            {"candidacy": {"ticket": "AQIDBAUG", "proof": proof, "name": "member"}},
            {"proof": proof, "fleet": FOUNDER.peer_id, "chain": chain, "news": [news]},
        ),
    }


def wire(signed: Entry) -> Iterator[Entry]:
    hello = {
        "versions": [1], "name": "golden", "agent": "twinshare/0.1.0", "addresses": ["/ip4/192.0.2.7/tcp/4001"],
        "number": 1_746_878_400_123,
    }  # fmt: skip
    yield frame("hello", Kind.HELLO, 0, hello, packed=pack(msgspec.convert(hello, Hello)))
    yield frame("ping", Kind.PING, 0, None)
    yield frame("pong", Kind.PONG, 0, None)
    yield frame("cancel", Kind.CANCEL, 7, None)
    yield frame("credit", Kind.CREDIT, 7, 16, packed=pack(16))
    for number, (name, (arguments, answer)) in enumerate((CALLS | mesh(signed)).items(), 1):
        yield call(number, name, arguments)
        yield result(number, name, answer)
    yield frame("detached", Kind.DETACHED, 9, OPERATION, packed=pack(msgspec.convert(OPERATION, Operation)))
    for number, error in enumerate(ERRORS, 1):
        yield frame(f"error {error['code']}", Kind.ERROR, number, error, packed=pack_error(_made(error)))
    yield frame("goodbye", Kind.GOODBYE, 0, ERRORS[0], packed=pack_error(_made(ERRORS[0])))
    follow = {"after": 17, "types": ["vm.", "op."]}
    head = {"timeout": 86400.0, "role": "viewer", "key": None, "detach": False, "credit": 64}
    packed = msgspec.convert([*head.values(), msgspec.Raw(pack(msgspec.convert(follow, Follow)))], Request)
    yield frame(
        "call follow_events", Kind.CALL, 99, head | {"arguments": follow}, method="follow_events", packed=pack(packed)
    )
    for number, (kind, data) in enumerate(EVENTS.items(), 1):
        event = {"id": number, "type": kind, "at": NOON, "data": data}
        yield frame(f"item {kind}", Kind.ITEM, 99, event, method=kind, packed=pack(msgspec.convert(event, Event)))
    yield from streams()
    record = {"peer": MEMBER.peer_id, "addresses": ["/ip4/192.0.2.7/tcp/4001"], "number": 5}
    yield entry("dht record", "record", make_record(MEMBER, msgspec.convert(record, PeerRecord)), record)


def streams() -> Iterator[Entry]:
    refused = {"error": "no VM is called 'web' here", "code": "vm_not_found", "details": {"vm": "web"}}
    digest = "blake3:" + "5a" * 32
    for form, kind, meaning in (
        ("TunnelRequest", tunnel.TunnelRequest, {"vm": "web", "port": 22, "role": "operator", "probe": True}),
        ("TunnelAnswer", tunnel.TunnelAnswer, {"vm_id": "5f0c", "vm_name": "web", "error": None}),
        ("TunnelAnswer", tunnel.TunnelAnswer, {"vm_id": "", "vm_name": "", "error": refused}),
        ("ConsoleRequest", console.ConsoleRequest, {"vm": "web", "role": "operator"}),
        ("ConsoleFrame", console.ConsoleFrame, {"data": "bG9naW46IA==", "error": None}),
        ("ConsoleFrame", console.ConsoleFrame, {"data": "", "error": refused}),
        ("BlobRequest", blob.BlobRequest, {"digest": digest, "index": True}),
        ("BlobAnswer", blob.BlobAnswer, {"index_size": 4096, "error": None}),
        ("BlobAnswer", blob.BlobAnswer, {"index_size": 0, "error": refused}),
        ("BlobWant", blob.BlobWant, {"chunks": [0, 3, 9]}),
    ):
        yield entry(f"stream {form}", form, tunnel.encode(msgspec.convert(meaning, kind)), meaning)


def _made(error: Entry) -> TwinshareError:
    return TwinshareError.from_wire(msgspec.convert(error, ErrorBody), error["status"])


def record_wire(folder: Path) -> None:
    signed = certificates()
    _write(folder / "wire.json", list(wire(signed)))
    _write(folder / "certificates.json", signed | {"tickets": list(tickets())})


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n")
