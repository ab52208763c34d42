"""Requests of Meda's dialect that must be refused: what is sent, and with which status, code and reason.

`one` is a VM that is stopped, `run` one that runs, `disk` an image that both stand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.api import negative
from tests.api.negative import JSON, Case

ROOT = "/api/v1"
RUN = b'"image":"disk"'
WORDS = {
    "/api/v1/vms": "VM_CREATE_ERROR",
    "/api/v1/images/run": "IMAGE_RUN_ERROR",
    "/api/v1/images/pull": "IMAGE_PULL_ERROR",
    "/api/v1/images/push": "IMAGE_PUSH_ERROR",
}
NOT_SERVED = """
    PUT /vms
    DELETE /vms
    PATCH /vms/one
    POST /vms/one
    GET /vms/one/start
    PUT /images
    GET /images/run
    GET /images/push
    PUT /images/pull
    POST /images/x
    POST /health
    DELETE /capacity
    POST /openapi.json
"""
WRONG: dict[str, tuple[bytes, ...]] = {
    "name": (b"1", b"[]", b"true", b'""', b'" two"', b'"Two"', b'"-two"', b'"two-"', b'"a b"', b'"two\\n"', b'"a/b"',
             b'"../x"', b'"."', b'"' + b"a" * 64 + b'"', b'"a\\u0000"', b'"$(reboot)"'),
    "memory": (b"1", b"2048", b"[]", b'""', b'"2"', b'"G"', b'"-2G"', b'"2 G"', b'"2G\\n"', b'"1,5G"', b'"2P"',
               b'"0M"', b'"63M"', b'"9999999999T"', b'"1e3M"', b'"\\u0662G"', b'"' + b"9" * 600 + b'G"'),
    "disk": (b"20", b'"20"', b'"0G"', b'"0.0001G"', b'"99999999T"', b'"two"', b'"2G;"', b"{}"),
    "cpus": (b"0", b"-1", b"1025", b"1.5", b'"2"', b"true", b"[]", b"9223372036854775808"),
    "user_data": (b"1", b"[]", b'"/etc/shadow"', b'"/path/to/user-data"', b'"echo"', b'"#!\\u0000"', b'"file:///x"',
                  b'"#cloud-config\\na: [b"', b'"#cloud-config\\n- a"', b'"#!' + b"x" * 65536 + b'"'),
    "unknown": (b"1",),
    "base_image": (b'"x"',),
    "xml": (b'"<domain/>"',),
    "cloud_init": (b"{}",),
}  # fmt: skip
IMAGE = (b"1", b"null", b"[]", b'""', b'"a b"', b'"a\\n"', b'"UPPER"', b'"a:b:c"', b'"../x"', b'"a@b"',
         b'"' + b"a" * 513 + b'"')  # fmt: skip
REGISTRY = (b"1", b'""', b'"a b"', b'"http://x"', b'"x:99999"', b'"' + b"a" * 256 + b'"')
ORG = (b"1", b'""', b'"a b"', b'"UP"', b'"../.."')
ONLY_RUN = {"image": IMAGE, "registry": REGISTRY, "org": ORG, "no_start": (b"1", b'"yes"', b"null")}
PULL = {"image": IMAGE, "registry": REGISTRY, "org": ORG, "force": (b"1",), "unknown": (b"1",), "name": (b'"x"',)}
PUSH = {"name": IMAGE, "image": IMAGE, "registry": REGISTRY, "dry_run": (b"1", b'"yes"', b"null"), "org": (b'"o"',)}
# The name of a host, or an address, inside: who names it hears that it is refused, and nobody is asked.
INSIDE = ("localhost:1", "127.0.0.1:5000", "10.1.2.3", "169.254.169.254")


def _post(name: str, target: str, body: bytes, status: int = 400, code: str | None = None, **more: Any) -> Case:
    return Case(name, "POST", ROOT + target, status, code or WORDS[ROOT + target], body, JSON, **more)


def bodies() -> Iterator[Case]:
    """Whatever is no JSON document for the one dialect is none for the other."""
    for case in negative.bodies():
        for target, word in WORDS.items():
            yield replace(case, name=f"{target}: {case.name}", target=target, code=word, path=None)


def fields() -> Iterator[Case]:
    """One field of a request, wrong in one way."""
    for target, good, wrong in (
        ("/vms", {"name": b'"two"'}, WRONG | {"force": (b"1", b'"yes"', b"null")}),
        ("/images/run", {"image": b'"disk"'}, WRONG | ONLY_RUN),
        ("/images/pull", {"image": b'"ubuntu"', "registry": b'"localhost:1"'}, PULL),
        ("/images/push", {"name": b'"disk"', "image": b'"localhost:1/o/x"'}, PUSH),
    ):
        for name, values in wrong.items():
            for value in values:
                sent = good | {name: value}
                body = b"{" + b",".join(b'"%s":%s' % (key.encode(), one) for key, one in sent.items()) + b"}"
                yield _post(f"{target}: {name} = {value[:40].decode()}", target, body)
    yield _post("no name", "/vms", b"{}", path="name")
    yield _post("a null name", "/vms", b'{"name":null}', path="name")
    yield _post("no image", "/images/run", b'{"name":"two"}', path="image")
    yield _post("nothing to pull", "/images/pull", b"{}", path="image")
    yield _post("nothing to push", "/images/push", b'{"image":"x.example/y"}', path="name")
    yield _post("nowhere to push", "/images/push", b'{"name":"disk"}', path="image")


def places() -> Iterator[Case]:
    """Paths, verbs, names and queries that do not exist."""
    for target in ("/nope", "/", "//vms", "/vms/", "/VMS", "/vm", "/vms/one/nope", "/images/run/", "/vms/one/start/"):
        yield Case(f"nothing at {target}", "GET", ROOT + target, 404, "NOT_FOUND")
    for name in (*negative.NO_VM.split(), "a" * 255):
        yield Case(f"no VM {name[:20]}", "GET", f"{ROOT}/vms/{name}", 404, "VM_NOT_FOUND")
    for verb, rest in (("POST", "start"), ("POST", "stop"), ("GET", "ip"), ("GET", "port-forward")):
        yield Case(f"{rest} of no VM", verb, f"{ROOT}/vms/nope/{rest}", 404, "VM_NOT_FOUND")
    yield Case("delete no VM", "DELETE", f"{ROOT}/vms/nope", 404, "VM_NOT_FOUND")
    yield Case("a name that is too long", "GET", f"{ROOT}/vms/" + "a" * 256, 400, "VM_GET_ERROR", path="name")
    yield Case("a name that is not UTF-8", "GET", f"{ROOT}/vms/%ff%fe", 400, "INVALID_REQUEST", path="path")
    yield Case("remove no image", "DELETE", f"{ROOT}/images/nope", 404, "IMAGE_REMOVE_ERROR")
    yield Case("remove what is no name", "DELETE", f"{ROOT}/images/%20", 400, "IMAGE_REMOVE_ERROR", path="image")
    yield Case("no forward", "DELETE", f"{ROOT}/vms/one/port-forward/8080", 404, "PORT_FORWARD_ERROR")
    for port in ("0", "65536", "x", "-1", "80.5"):
        yield Case(
            f"forward {port}", "DELETE", f"{ROOT}/vms/one/port-forward/{port}", 400, "PORT_FORWARD_ERROR",
            path="host_port",
        )  # fmt: skip
    for line in NOT_SERVED.strip().splitlines():
        verb, target = line.split()
        yield Case(line, verb, ROOT + target, 405, "METHOD_NOT_ALLOWED")
    for query in ("x=1", "all=true", "a=1&a=2", "a=%ff"):
        yield Case(f"list with ?{query}", "GET", f"{ROOT}/vms?{query}", 400, "VM_LIST_ERROR")
    yield Case("images with a query", "GET", f"{ROOT}/images?x=1", 400, "IMAGE_LIST_ERROR")
    yield Case("health with a query", "GET", f"{ROOT}/health?x=1", 400, "INVALID_REQUEST")
    yield Case("capacity with a query", "GET", f"{ROOT}/capacity?x=1", 400, "CAPACITY_PROBE_ERROR")


def transfers() -> Iterator[Case]:
    """Pulls and pushes that go nowhere: to hosts inside this network, and of images that are not here."""
    for host in INSIDE:
        named = b'"registry":"%s"' % host.encode()
        refused: dict[str, Any] = {"status": 403, "reason": "address_refused"}
        yield _post(f"run from {host}", "/images/run", b'{"image":"nope","org":"o",' + named + b"}", **refused)
        yield _post(f"pull from {host}", "/images/pull", b'{"image":"nope","org":"o",' + named + b"}", **refused)
        yield _post(f"pull {host}/x", "/images/pull", b'{"image":"%s/x"}' % host.encode(), **refused)
        yield _post(f"push to {host}", "/images/push", b'{"name":"disk","image":"x",' + named + b"}", **refused)
        dry = b'{"name":"disk","image":"%s/x","dry_run":true}' % host.encode()
        yield _post(f"try to push to {host}", "/images/push", dry, **refused)
    yield _post("push no image", "/images/push", b'{"name":"nope","image":"x.example/y"}', 404)
    yield _post("push to no registry", "/images/push", b'{"name":"disk","image":"y"}', path="target")
    yield _post("push to a digest", "/images/push", b'{"name":"disk","image":"x.example/y@sha256:%s"}' % (b"0" * 64))
    yield _post("pull a digest alone", "/images/pull", b'{"image":"blake3:%s"}' % (b"0" * 64), 404)


def states() -> Iterator[Case]:
    """What the state of things forbids, and bodies where none belongs."""
    yield _post("a taken name", "/vms", b'{"name":"one","memory":"64M","disk":"1G"}', 409)
    yield _post("run with a taken name", "/images/run", b'{"name":"one","memory":"64M","disk":"1G",' + RUN + b"}", 409)
    yield _post("a field twice", "/images/run", b'{"name":"two","name":"three",' + RUN + b"}", path="name")
    yield _post("an image that is not here", "/images/run", b'{"image":"nope"}', 404)
    yield _post("a small disk", "/images/run", b'{"image":"big","disk":"1G"}', path="disk")
    yield _post("more memory than there is", "/vms", b'{"name":"two","memory":"900T"}', 503, "MEM_EXHAUSTED")
    yield _post("force, and no room", "/vms", b'{"name":"one","force":true,"memory":"900T"}', 503, "MEM_EXHAUSTED")
    yield Case("the address of a stopped VM", "GET", f"{ROOT}/vms/one/ip", 409, "VM_IP_ERROR")
    yield Case("remove an image in use", "DELETE", f"{ROOT}/images/disk", 409, "IMAGE_REMOVE_ERROR")
    for value in (b'"guest_port":0', b'"guest_port":80,"protocol":"sctp"', b'"guest_port":80,"bind":"evil.example"',
                  b'"guest_port":"80"', b'"guest_port":65536', b'"guest_port":80,"x":1'):  # fmt: skip
        body = b'{"host_port":0,' + value + b"}"
        yield _post(f"a forward with {value.decode()}", "/vms/one/port-forward", body, code="PORT_FORWARD_ERROR")
    yield _post("a forward without ports", "/vms/one/port-forward", b"{}", code="PORT_FORWARD_ERROR")
    yield _post("start with a body", "/vms/one/start", b'{"x":1}', code="VM_START_ERROR")
    yield _post("stop, unknown field", "/vms/run/stop", b'{"now":true}', code="VM_STOP_ERROR")
    yield Case("delete with a body", "DELETE", f"{ROOT}/vms/one", 400, "VM_DELETE_ERROR", b'{"x":1}', JSON)
    yield Case("list with a body", "GET", f"{ROOT}/vms", 400, "VM_LIST_ERROR", b"{}", JSON)


def headers() -> Iterator[Case]:
    """Headers that decide something, wrong; answered before a route is found."""
    good = b'{"name":"two"}'
    for case in negative.headers():
        if case.verb == "POST" and case.target == "/api/vm":
            word = case.code.upper() if case.status != 400 else WORDS[ROOT + "/vms"]
            yield replace(case, target=f"{ROOT}/vms", body=good, code=word, path=None)
