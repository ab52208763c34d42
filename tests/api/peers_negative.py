"""Requests about peers that must be refused, on a node whose only peer is called `far`.

Whatever is refused of a VM or image of this node is refused alike of one of `far`: the same cases, sent there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.api import negative
from tests.api.negative import JSON, Case
from twinshare.protocols.ticket import TicketContent, encode_ticket

STRANGER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
FAR = ("/api/vm", "/api/image/disk", "/api/image/nope", "/api/image/pull", "/api/image/push", "/api/operations")
FOR_EVER = 2**32 - 1


def _post(name: str, target: str, body: bytes, status: int = 400, code: str = "invalid_request") -> Case:
    return Case(name, "POST", target, status, code, body, JSON)


def far() -> Iterator[Case]:
    """The near node's cases, one path further."""
    groups = (
        negative.bodies,
        negative.fields,
        negative.places,
        negative.states,
        negative.transfers,
        negative.bodies_at_odds,
    )
    for group in groups:
        for case in group():
            if case.target.startswith(FAR) and case.target != "/api/vm/one/nope":
                yield replace(
                    case, name=f"far: {case.name}", target=case.target.replace("/api/", "/api/remote/far/", 1)
                )


def ticket(expires: int) -> bytes:
    """One of another fleet, well made."""
    content = TicketContent(
        inviter=STRANGER, id=bytes(6), secret=bytes(16), expires=expires, addresses=("/ip4/127.0.0.1/tcp/9",)
    )
    return encode_ticket(content).encode()


def tickets() -> Iterator[Case]:
    """Joining with what is none, and making what cannot be."""
    join, invite = "/api/p2p/join", "/api/p2p/invite"
    good = ticket(FOR_EVER)
    for name, wrong in (
        ("nothing", b""), ("a word", b"ticket"), ("a blank", b" "), ("another letter", good[:40] + b"1" + good[41:]),
        ("one letter missing", good[:-1]), ("one letter more", good + b"1"), ("two", good + good),
        ("wrong letters", b"0OIl" + good), ("a long text", b"1" * 4096), ("far too long", b"1" * 4097),
        ("another script", "тикет".encode()),
    ):  # fmt: skip
        yield _post(f"join with {name}", join, b'{"ticket":"%s"}' % wrong)
    for body in (b"{}", b'{"ticket":null}', b'{"ticket":1}', b'{"ticket":["x"]}', b'{"ticket":"x","peer":"y"}', b"[]"):
        yield _post(f"join with {body.decode()}", join, body)
    yield _post("join with an old ticket", join, b'{"ticket":"%s"}' % ticket(1), 403, "forbidden")
    yield _post("join another fleet", join, b'{"ticket":"%s"}' % good, 409, "conflict")
    for field in (
        b'"role":"root"', b'"role":""', b'"role":null', b'"role":1', b'"expires":0', b'"expires":-1', b'"expires":1.5',
        b'"expires":"10m"', b'"expires":1e9', b'"uses":0', b'"uses":1001', b'"uses":true', b'"limits":1',
        b'"limits":{"vms":-1}', b'"limits":{"vms":"2"}', b'"limits":{"vm":2}', b'"limits":{"vms":2,"vms":3}',
        b'"secret":"x"', b'"fleet":"x"',
    ):  # fmt: skip
        yield _post(f"invite with {field.decode()}", invite, b"{%s}" % field)


def peers() -> Iterator[Case]:
    """Peers that do not exist, or are not what they are asked to be."""
    for peer in ("nobody", "FAR", "far%20", "%00", "12D3KooW", STRANGER, "..%2f", "%F0%9F%98%80", "a" * 255):
        for verb, target in (
            ("GET", f"/api/p2p/peers/{peer}"), ("POST", f"/api/p2p/peers/{peer}/ping"),
            ("DELETE", f"/api/p2p/peers/{peer}"), ("GET", f"/api/remote/{peer}/vm"),
            ("POST", f"/api/remote/{peer}/vm/one/start"), ("GET", f"/api/remote/{peer}/image"),
            ("DELETE", f"/api/remote/{peer}/operations/x"), ("GET", f"/api/remote/{peer}/vm/one/port-forward"),
        ):  # fmt: skip
            if peer == "12D3KooW":  # how every ID begins: `far` is the only one that can be meant, but this node's too
                yield Case(f"{verb} {target}", verb, target, 409, "ambiguous_name")
            else:
                yield Case(f"{verb} {target[:40]} … {target[-25:]}", verb, target, 404, "peer_not_found")
    for target in ("p2p/peers/", "remote/"):
        yield Case(
            f"too long a name at {target}", "GET", f"/api/{target}{'a' * 256}{'/vm' * ('remote' in target)}", 400
        )
    yield Case("put out the founder", "DELETE", "/api/p2p/peers/far", 403, "forbidden")
    yield Case("put itself out", "DELETE", "/api/p2p/peers/local", 400)
    yield Case("a remote token", "GET", "/api/remote/far/tokens", 404, "not_found")
    yield Case("a remote stop of P2P", "POST", "/api/remote/far/p2p/stop", 404, "not_found")
    yield Case("events of a peer", "GET", "/api/remote/far/events", 404, "not_found")
    yield Case("far of far", "GET", "/api/remote/far/remote/here/vm", 404, "not_found")
    for verb in ("PUT", "DELETE", "PATCH"):
        yield Case(f"{verb} remote VMs", verb, "/api/remote/far/vm", 405, "method_not_allowed")
    yield Case("GET p2p/stop", "GET", "/api/p2p/stop", 405, "method_not_allowed")
    for verb in ("start", "stop"):
        yield _post(f"{verb} with a body", f"/api/p2p/{verb}", b'{"force":true}')
        yield _post(f"{verb}, half a body", f"/api/p2p/{verb}", b"{")


def messages() -> Iterator[Case]:
    """Messages that are none."""
    target, good = "/api/p2p/message", b'"peer_id":"far","message_type":"NOTE"'
    for field in (
        b'"data":1', b'"data":[]', b'"data":"x"', b'"data":null', b'"data":{"a":' + b"[" * 40 + b"]" * 40 + b"}",
        b'"data":{"a":NaN}', b'"data":{},"urgent":true', b'"x":{}',
    ):  # fmt: skip
        yield _post(f"a message with {field[:20].decode()}", target, b"{%s,%s}" % (good, field))
    yield _post("a message without data", target, b"{%s}" % good)
    for kind in (b'""', b"1", b"null", b'"%s"' % (b"x" * 65)):
        yield _post(f"a {kind[:9].decode()} message", target, b'{"peer_id":"far","message_type":%s,"data":{}}' % kind)
    for peer in (b'""', b"1", b"null", b'"%s"' % (b"x" * 256)):
        yield _post(f"a message to {peer[:9].decode()}", target, b'{"peer_id":%s,"message_type":"X","data":{}}' % peer)
    nobody = b'{"peer_id":"nobody","message_type":"HELLO","data":{}}'
    yield _post("a message to nobody", target, nobody, 404, "peer_not_found")
    large = b'{%s,"data":{"a":"%s"}}' % (good, b"x" * (64 << 10))
    yield _post("a large message", target, large, 413, "too_large")
