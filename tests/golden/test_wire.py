"""What the first version sent to its peers is read with the same meaning: frames, streams, tickets, certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.golden.meaning import differences
from twinshare.agent.p2p.records import read_record, record_key
from twinshare.agent.p2p.signing import open_token
from twinshare.protocols import blob, console, tunnel
from twinshare.protocols.events import Event
from twinshare.protocols.frames import FrameReader, Kind
from twinshare.protocols.membership.rules import evaluate
from twinshare.protocols.membership.statements import SignedRevocation, read_certificate, read_revocation
from twinshare.protocols.mesh import GossipUpdate, JoinService, MeshService
from twinshare.protocols.messages import Follow, Hello, Request, unpack_error
from twinshare.protocols.operation import Operation
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods
from twinshare.protocols.ticket import decode_ticket

V1 = Path(__file__).with_name("v1")
WIRE: list[dict[str, Any]] = json.loads((V1 / "wire.json").read_text())
SIGNED: dict[str, Any] = json.loads((V1 / "certificates.json").read_text())
TABLE = all_methods([*SERVICES, MeshService, JoinService])
BODIES = {"HELLO": Hello, "CREDIT": int, "DETACHED": Operation, "ITEM": Event}
STREAMS = {
    kind.__name__: kind
    for kind in (
        tunnel.TunnelRequest, tunnel.TunnelAnswer, console.ConsoleRequest, console.ConsoleFrame, blob.BlobRequest,
        blob.BlobAnswer, blob.BlobWant,
    )
}  # fmt: skip


def body_of(kind: Kind, method: str, body: bytes, meaning: dict[str, Any] | None) -> Any:
    """What this version makes of a frame's body."""
    if kind is Kind.CALL:
        request = msgspec.msgpack.decode(body, type=Request)
        head = {name: getattr(request, name) for name in ("timeout", "role", "key", "detach", "credit")}
        if method == "follow_events":
            return head | {"arguments": msgspec.msgpack.decode(request.arguments, type=Follow)}
        method_args = TABLE[method].args(**TABLE[method].unpack(bytes(request.arguments)))
        return head | {"arguments": method_args}
    if kind is Kind.RESULT:
        assert meaning is not None
        return {"of": meaning["of"], "answer": TABLE[meaning["of"]].unpack_result(body)}
    if kind in {Kind.ERROR, Kind.GOODBYE}:
        error = unpack_error(body)
        wire = error.to_wire()
        return {"error": wire.error, "code": wire.code, "status": error.status, "details": wire.details}
    if kind.name in BODIES:
        return msgspec.msgpack.decode(body, type=BODIES[kind.name])
    assert body == b""
    return None


@pytest.mark.parametrize("golden", WIRE, ids=lambda entry: entry["name"].replace(" ", "-"))
def test_what_was_sent_means_the_same(golden: dict[str, Any]) -> None:
    data, meaning = bytes.fromhex(golden["hex"]), golden["meaning"]
    if golden["form"] == "frame":
        [frame] = FrameReader().feed(data)
        body = body_of(frame.kind, frame.method, frame.body, meaning["body"])
        found: Any = {"kind": frame.kind.name, "id": frame.id, "method": frame.method, "body": body}
    elif golden["form"] == "record":
        found = read_record(record_key(meaning["peer"]), data)
    else:
        size = tunnel.length_of(data[: tunnel.HEAD.size])
        assert size == len(data) - tunnel.HEAD.size
        found = tunnel.decode(data[tunnel.HEAD.size :], STREAMS[golden["form"]])
    assert differences(found, meaning) == []


def test_every_method_that_peers_can_call_is_golden() -> None:
    called = {entry["name"].removeprefix("call ") for entry in WIRE if entry["name"].startswith("call ")}
    assert {name for name in called if name not in TABLE} == {"follow_events"}, "a method of the first version is gone"


def test_certificates_verify_and_say_the_same() -> None:
    for golden in SIGNED["chains"]:
        read = [read_certificate(token, open_token) for token in golden["tokens"]]
        assert differences([statement.claims for statement in read], golden["claims"]) == []
        members = evaluate(SIGNED["fleet"], read, SIGNED["at"]).members
        for statement in read:
            if statement.sub != SIGNED["fleet"]:
                assert members[statement.sub].certificate == statement.claims


def test_revocations_verify_and_say_the_same() -> None:
    for golden in SIGNED["revocations"]:
        read = read_revocation(golden["token"], open_token)
        assert differences(read.claims, golden["claims"]) == []
        chain = [read_certificate(token, open_token) for token in golden["chain"]]
        roster = evaluate(SIGNED["fleet"], [read, *chain], SIGNED["at"])
        assert roster.said[read.sub] == [read], "a revocation of the first version counts"


def test_a_ticket_is_read_and_proved_with() -> None:
    for golden in SIGNED["tickets"]:
        ticket, meaning = decode_ticket(golden["text"]), golden["meaning"]
        assert (ticket.inviter, ticket.id.hex(), ticket.secret.hex()) == (
            meaning["inviter"], meaning["id"], meaning["secret"],
        )  # fmt: skip
        assert (ticket.expires, list(ticket.addresses)) == (meaning["expires"], meaning["addresses"])
        for side, proof in golden["proofs"].items():
            assert ticket.proof(side, golden["joiner"], b"i" * 16, b"j" * 16).hex() == proof


def test_a_gossip_update_of_a_later_version_is_read() -> None:
    packed = {"members": [["a.b.c"]], "revocations": [{"token": "a.b.c", "reason": "left"}], "votes": [{"for": "x"}]}
    found = TABLE["tell"].unpack(msgspec.msgpack.encode({"news": packed, "hops": 3}))["update"]
    assert found == GossipUpdate(members=[("a.b.c",)], revocations=[SignedRevocation(token="a.b.c")])
