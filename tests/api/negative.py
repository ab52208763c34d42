"""Requests that must be refused: what is sent, and with which status and code the node answers.

`one` is a VM that is stopped, `run` one that runs, `disk` an image that both stand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SPEC = {"name": "two", "image": "disk", "cpu_cores": 1, "memory": 64, "disk_size": 1}
JSON = {"content-type": "application/json"}
NOWHERE = """
    /nope /api /api/ /api/vms /api/vm/ /api//vm /API/VM /api/vm/one/nope /api/v2/vm /api/vm/one/start/
    /../etc/passwd /api/../etc/passwd /web/../secret /.git/config
"""
NO_VM = "nope NOPE %00 .. %2e%2e%2fetc one%20 one%0a * %F0%9F%98%80 o%6Ee2 %27%20OR%201=1 --help"
NOT_SERVED = """
    PUT /api/vm
    DELETE /api/vm
    PATCH /api/vm
    TRACE /api/vm
    PUT /api/vm/one
    POST /api/vm/one
    GET /api/vm/one/start
    get /api/vm/one/stop
    PROPFIND /api/vm/one
    FOO /api/vm
    POST /
    POST /metrics
    POST /api/openapi.json
    DELETE /api/events
"""
WRONG_LOG = (
    "limit=null offset=null limit=0 limit=x limit=262145 limit=1.5 limit=%ff limit= offset=x offset=1&offset=2 nope=1"
)


@dataclass(frozen=True)
class Case:
    """One request. `body` is sent as it is; `path` of the details names the field, where one is at fault.

    `reason` is our code where a dialect has its own, and stands in the details.
    """

    name: str
    verb: str
    target: str
    status: int
    code: str = "invalid_request"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    reason: str | None = None


def _body(name: str, body: bytes, status: int = 400, code: str = "invalid_request", **more: Any) -> Case:
    return Case(name, "POST", "/api/vm", status, code, body, {**JSON, **more.pop("headers", {})}, **more)


def _post(name: str, target: str, body: bytes, status: int = 400, code: str = "invalid_request", **more: Any) -> Case:
    return Case(name, "POST", target, status, code, body, JSON, **more)


def bodies() -> Iterator[Case]:
    """Bodies that are no JSON document, or not the one that is asked for."""
    named = b'{"name":"two","image":"disk"'
    yield _body("empty", b"")
    yield _body("blank", b" \n ")
    yield _body("half", b'{"name":')
    yield _body("two documents", b"{}{}")
    yield _body("trailing text", named + b"} x")
    yield _body("a list", b"[]")
    yield _body("a string", b'"two"')
    yield _body("a number", b"1")
    yield _body("null", b"null")
    yield _body("true", b"true")
    yield _body("single quotes", b"{'name':'two','image':'disk'}")
    yield _body("a comment", named + b"/* */}")
    yield _body("a trailing comma", named + b",}")
    yield _body("not UTF-8", b'{"name":"\xff\xfe","image":"disk"}')
    yield _body("half a character", b'{"name":"two","image":"\xe2\x82"}')
    yield _body("UTF-16", '{"name":"two","image":"disk"}'.encode("utf-16"))
    yield _body("a byte order mark", b"\xef\xbb\xbf" + named + b"}")
    yield _body("a lone surrogate", b'{"name":"two","image":"\\ud800"}')
    yield _body("NUL", b"\0")
    yield _body("NaN", named + b',"cpu_cores":NaN}')
    yield _body("infinity", named + b',"cpu_cores":Infinity}')
    yield _body("an endless number", named + b',"cpu_cores":' + b"9" * 5000 + b"}")
    yield _body("a large exponent", named + b',"cpu_cores":1e400}')
    yield _body("a field twice", named + b',"image":"disk"}', path="image")
    yield _body("a field twice, once escaped", named + b',"im\\u0061ge":"disk"}', path="image")
    yield _body("a label twice", named + b',"labels":{"a":"b","a":"b"}}', path="a")
    yield _body("deep lists", b"[" * 100_000)
    yield _body("deep lists, closed", b"[" * 50_000 + b"]" * 50_000)
    yield _body("deep in an unknown field", named + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", path="x")
    yield _body("deep in labels", named + b',"labels":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}")
    yield _body("deep objects", b'{"a":' * 50_000)
    yield _body("over 1 MiB", b'{"name":"' + b"x" * (1 << 20) + b'"}', 413, "too_large")
    yield _body(
        "a body where none belongs", b"{}", 415, "unsupported_media_type", headers={"content-type": "text/plain"}
    )
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
        "json",
        "",
    ):
        yield _body(f"sent as '{kind}'", named + b"}", 415, "unsupported_media_type", headers={"content-type": kind})
    yield _body(
        "latin-1",
        named + b"}",
        415,
        "unsupported_media_type",
        headers={"content-type": "application/json; charset=latin-1"},
    )
    yield Case("no content type", "POST", "/api/vm", 415, "unsupported_media_type", named + b"}")
    yield Case("a form", "POST", "/api/vm/one/stop", 415, "unsupported_media_type", b"force=true")


def fields() -> Iterator[Case]:
    """One field of a create request, wrong in one way."""
    wrong: dict[str, list[bytes]] = {
        "name": [b"1", b"null", b"[]", b"{}", b"true", b'""', b'" two"', b'"Two"', b'"-two"', b'"two-"', b'"a b"',
                 b'"two\\n"', b'"a/b"', b'"../x"', b'"."', b'"' + b"a" * 64 + b'"', b'"\\u00e9"', b'"a\\u0000"',
                 b'"$(reboot)"', b'"a;b"'],
        "image": [b"1", b"null", b"[]", b'""', b'"' + b"a" * 513 + b'"', b'"a b"', b'"a\\n"', b'"a\\u0000"'],
        "cpu_cores": [b"0", b"-1", b"1025", b"1.5", b'"2"', b"null", b"true", b"[]", b"9223372036854775808", b"-0.1"],
        "memory": [b"0", b"63", b"-1", b"1e20", b'"64"', b"null", b"false", b"64.5"],
        "disk_size": [b"0", b"-1", b'"1"', b"null", b"1048577", b"0.5"],
        "network": [b"1", b"null", b'""', b'"a b"', b'"a\\n"', b'"../br"', b'"a;b"', b'"' + b"a" * 65 + b'"'],
        "hypervisor": [b"1", b"null", b'"xen"', b'"KVM"', b'"kvm\\n"', b'""'],
        "mac": [b"1", b"null", b'"01:00:5e:00:00:01"', b'"52:54:00:AB:CD:EF"', b'"52:54:00:12:34:56\\n"'],
        "forwards": [b"1", b"null", b"[1]", b'[{"host_port":1}]', b'[{"host_port":65536,"guest_port":1}]',
                     b'[{"host_port":9,"guest_port":1},{"host_port":9,"guest_port":2}]'],
        "start": [b"1", b'"yes"', b"null"],
        "autostart": [b"0", b"null"],
        "labels": [b"[]", b"1", b"null", b'{"a":1}', b'{"":"b"}', b'{"a":"' + b"b" * 257 + b'"}', b'{"a":"\\u0001"}'],
        "cloud_init": [b"1", b'"x"', b"[]", b'{"user_data":1}', b'{"user_data":"/etc/shadow"}',
                       b'{"user_data":"echo"}',
                       b'{"password":"x"}', b'{"ssh_authorized_keys":"x"}', b'{"ssh_authorized_keys":["a\\nb"]}',
                       b'{"hostname":"a b"}',
                       b'{"user_data":"#!' + b"x" * 65536 + b'"}', b'{"network_config":"\\u0000"}'],
        "unknown": [b"1"],
        "user_data": [b'"#!/bin/sh"'],
        "xml": [b'"<domain/>"'],
        "id": [b'"x"'],
        "__class__": [b'"x"'],
    }  # fmt: skip
    good = {"name": b'"two"', "image": b'"disk"'}
    for name, values in wrong.items():
        for value in values:
            spec = good | {name: value}
            body = b"{" + b",".join(b'"%s":%s' % (key.encode(), one) for key, one in spec.items()) + b"}"
            yield _body(f"{name} = {value[:40].decode()}", body)
    yield _body("no name", b'{"image":"disk"}', path="name")
    yield _body("without an image", b'{"name":"two"}', path="image")


def places() -> Iterator[Case]:
    """Paths, verbs, names and queries that do not exist."""
    for target in NOWHERE.split():
        yield Case(f"nothing at {target}", "GET", target, 404, "not_found")
    for name in (*NO_VM.split(), "a" * 255):
        yield Case(f"no VM {name[:20]}", "GET", f"/api/vm/{name}", 404, "vm_not_found")
    for verb, rest in (("POST", "start"), ("POST", "stop"), ("POST", "restart"), ("POST", "pause"), ("GET", "log"),
                       ("GET", "ip"), ("GET", "stats"), ("GET", "screenshot"), ("GET", "port-forward")):  # fmt: skip
        yield Case(f"{rest} of no VM", verb, f"/api/vm/nope/{rest}", 404, "vm_not_found")
    yield Case("delete no VM", "DELETE", "/api/vm/nope", 404, "vm_not_found")
    yield Case("change no VM", "PATCH", "/api/vm/nope", 404, "vm_not_found", b'{"autostart":true}', JSON)
    yield Case("a name that is too long", "GET", "/api/vm/" + "a" * 256, 400, path="vm")
    yield Case("a name that is not UTF-8", "GET", "/api/vm/%ff%fe", 400, path="path")
    yield Case("a path that is too long", "GET", "/api/vm/" + "a" * 9000, 400)
    yield Case("no image", "GET", "/api/image/nope", 404, "image_not_found")
    yield Case("remove no image", "DELETE", "/api/image/nope", 404, "image_not_found")
    yield Case("no operation", "GET", "/api/operations/nope", 404, "operation_not_found")
    yield Case("cancel no operation", "DELETE", "/api/operations/nope", 404, "operation_not_found")
    yield Case("wait for no operation", "GET", "/api/operations/nope/wait?timeout=1", 404, "operation_not_found")
    yield Case("no token", "DELETE", "/api/tokens/nope", 404, "token_not_found")
    yield Case("no forward", "DELETE", "/api/vm/one/port-forward/8080", 404, "forward_not_found")
    for line in NOT_SERVED.strip().splitlines():
        verb, target = line.split()
        yield Case(f"{verb} {target}", verb, target, 405, "method_not_allowed")
    for query in ("x=1", "force=true", "a=1&a=2"):
        yield Case(f"list with ?{query}", "GET", f"/api/vm?{query}", 400)
    for query in WRONG_LOG.split():
        yield Case(f"log with ?{query}", "GET", f"/api/vm/one/log?{query}", 400)
    for query in ("state=nope", "state=", "state=done&state=failed"):
        yield Case(f"operations with ?{query}", "GET", f"/api/operations?{query}", 400)
    for query in ("timeout=-1", "timeout=601", "timeout=x", "timeout=nan", "timeout=inf"):
        yield Case(f"wait with ?{query}", "GET", f"/api/operations/x/wait?{query}", 400)
    for port in ("0", "65536", "x", "-1", "80.5"):
        yield Case(f"forward {port}", "DELETE", f"/api/vm/one/port-forward/{port}", 400, path="host_port")


def transfers() -> Iterator[Case]:
    """Pulls and pushes: names that are none, hosts inside this network, images that are not here."""
    pull, push = "/api/image/pull", "/api/image/push"
    for name in (b"1", b"null", b'""', b'"a b"', b'"UPPER"', b'"../x"', b'"a:b:c"', b'"ftp://x/y"', b'"http://x/y"',
                 b'"https://x/y"', b'"file:///etc/passwd"', b'"a\\n"', b'"a\\u0000"'):  # fmt: skip
        yield _post(f"pull {name.decode()}", pull, b'{"image":%s}' % name)
        yield _post(f"push {name.decode()}", push, b'{"image":%s,"target":"x.example/y"}' % name)
        yield _post(f"push to {name.decode()}", push, b'{"image":"disk","target":%s}' % name)
    digest = b"0" * 64
    for value in (b'"name":"../x"', b'"name":"a b"', b'"name":1', b'"sha256":"0"', b'"sha256":1', b'"force":true',
                  b'"sha256":"%s"' % digest):  # fmt: skip
        yield _post(f"pull with {value.decode()[:20]}", pull, b'{"image":"x.example/y",' + value + b"}")
    yield _post("pull nothing", pull, b"{}", path="image")
    yield _post("push nowhere", push, b'{"image":"disk"}', path="target")
    yield _post("push to no registry", push, b'{"image":"disk","target":"y"}', path="target")
    yield _post("push, but how", push, b'{"image":"disk","target":"x.example/y","dry_run":"yes"}')
    yield _post("pull what nobody knows", pull, b'{"image":"nope"}', 404, "image_not_found")
    yield _post("push no image", push, b'{"image":"nope","target":"x.example/y"}', 404, "image_not_found")
    for host in (b"localhost:1", b"127.0.0.1:5000", b"10.1.2.3", b"192.168.1.1:443", b"169.254.169.254"):
        refused = (403, "address_refused")
        yield _post(f"pull from {host.decode()}", pull, b'{"image":"%s/x"}' % host, *refused)
        yield _post(f"push to {host.decode()}", push, b'{"image":"disk","target":"%s/x"}' % host, *refused)
        yield _post(f"make a VM of {host.decode()}/x", "/api/vm", b'{"name":"two","image":"%s/x"}' % host, *refused)
        by_https = b'{"image":"https://%s/x.raw","sha256":"%s"}' % (host, digest)
        yield _post(f"pull https://{host.decode()}", pull, by_https, *refused)
    by_https = b'{"image":"https://[::1]:1/x.raw","sha256":"%s"}' % digest
    yield _post("pull https://[::1]", pull, by_https, 403, "address_refused")


def states() -> Iterator[Case]:
    """What the state of things forbids."""
    taken = b'{"name":"one","image":"disk","memory":64,"disk_size":1,"cpu_cores":1}'
    yield Case("a taken name", "POST", "/api/vm", 409, "vm_exists", taken, JSON)
    yield _body("an image that is not here", b'{"name":"two","image":"nope"}', 404, "image_not_found")
    yield _body("a disk smaller than its image", b'{"name":"two","image":"big","disk_size":1}', path="disk_size")
    yield _body(
        "more memory than there is", b'{"name":"two","image":"disk","memory":1073741824}', 507, "insufficient_resources"
    )
    yield Case("delete a running VM", "DELETE", "/api/vm/run", 409, "wrong_state")
    yield Case("pause a stopped VM", "POST", "/api/vm/one/pause", 409, "wrong_state")
    yield Case("resume a stopped VM", "POST", "/api/vm/one/resume", 409, "wrong_state")
    yield Case("statistics of a stopped VM", "GET", "/api/vm/one/stats", 409, "wrong_state")
    yield Case("a picture of a stopped VM", "GET", "/api/vm/one/screenshot", 409, "wrong_state")
    yield Case("remove an image in use", "DELETE", "/api/image/disk", 409, "image_in_use")


def bodies_at_odds() -> Iterator[Case]:
    """Bodies that the thing they are sent to cannot take."""
    yield Case(
        "a forward to no port",
        "POST",
        "/api/vm/one/port-forward",
        400,
        body=b'{"host_port":0,"guest_port":0}',
        headers=JSON,
    )
    yield Case(
        "a forward of SCTP",
        "POST",
        "/api/vm/one/port-forward",
        400,
        body=b'{"host_port":0,"guest_port":1,"protocol":"sctp"}',
        headers=JSON,
    )
    for value in (b'"protocol":"tcp\\n"', b'"bind":"127.0.0.1\\n"', b'"bind":"999.1.1.1"', b'"bind":":::::"'):
        body = b'{"host_port":0,"guest_port":1,' + value + b"}"
        yield _post(f"a forward with {value.decode()}", "/api/vm/one/port-forward", body)
    yield Case(
        "a forward bound to a name",
        "POST",
        "/api/vm/one/port-forward",
        400,
        body=b'{"host_port":0,"guest_port":1,"bind":"evil.example"}',
        headers=JSON,
    )
    yield _post("start with a body", "/api/vm/one/start", b'{"force":true}')
    yield _post("stop, half a second", "/api/vm/run/stop", b'{"timeout":0}')
    yield _post("stop, unknown field", "/api/vm/run/stop", b'{"now":true}')
    yield Case("delete, wrong type", "DELETE", "/api/vm/one", 400, body=b'{"delete_disk":"yes"}', headers=JSON)
    yield Case("list with a body", "GET", "/api/vm", 400, body=b"{}", headers=JSON)
    yield _post("a token without a name", "/api/tokens", b"{}")
    yield _post("a token with a wild name", "/api/tokens", b'{"name":"a b"}')
    yield _post("a token with a newline", "/api/tokens", b'{"name":"a\\n"}')
    yield _post("a token with an unknown role", "/api/tokens", b'{"name":"a","role":"root"}')
    yield Case(
        "a token that ended before it began",
        "POST",
        "/api/tokens",
        400,
        body=b'{"name":"a","expires_in":0}',
        headers=JSON,
    )


def headers() -> Iterator[Case]:
    """Headers that decide something, wrong."""
    good = b'{"name":"two","image":"disk"}'
    for value in ("", " ", "a b", "a\tb", "x" * 256):
        yield _body(f"key '{value[:10]}'", good, headers={"idempotency-key": value})
    for value in ("x", "-1", "1.5", "99999999999999999999", ""):
        yield Case(f"Last-Event-ID '{value}'", "GET", "/api/events", 400, headers={"last-event-id": value})
    for query in ("after=x", "after=-1", "types=" + "x" * 600, "nope=1"):
        yield Case(f"events with ?{query[:20]}", "GET", f"/api/events?{query}", 400)
    for value in ("Bearer wrong", "Basic eDp5", "Bearer", "Token x"):
        yield Case(
            f"Authorization: {value}", "GET", "/api/vm", 401, "unauthenticated", headers={"authorization": value}
        )
    yield _body("another host", good, 421, "misdirected", headers={"host": "evil.example"})
    yield _body("another origin", good, 403, "forbidden", headers={"origin": "https://evil.example"})
    yield _body("another site", good, 403, "forbidden", headers={"sec-fetch-site": "cross-site"})
    upload = "/api/image/import"
    octets = {"content-type": "application/octet-stream"}
    yield Case("an upload without a name", "POST", upload, 400, body=b"x", headers=octets)
    yield Case("an upload as JSON", "POST", f"{upload}?name=x", 415, "unsupported_media_type", b"{}", JSON)
    yield Case("an upload of nothing", "POST", f"{upload}?name=x", 400, headers=octets)
    yield Case("an upload to a path", "POST", f"{upload}?name=../x", 400, body=bytes(512), headers=octets)
    yield Case("an upload to a wild name", "POST", f"{upload}?name=a%20b", 400, body=bytes(512), headers=octets)
    yield Case("an upload with more", "POST", f"{upload}?name=x&y=1", 400, body=bytes(512), headers=octets)
