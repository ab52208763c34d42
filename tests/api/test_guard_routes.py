"""Every route and every websocket of the application, asked by what a page of another site can send: none answers.

The cases come from the URL map, so that a new route is among them.
"""

from __future__ import annotations

import re
from pathlib import Path

import trio

from tests.api.served import SPEC, TABLE, Served, served, talk
from tests.api.test_console import handshake
from twinshare.agent.node import Node
from twinshare.api.app import make_app
from twinshare.protocols.access import LOCAL_ADMIN

# A page of another site: its name points here (rebinding), or it asks as itself. A browser sets these itself.
REBOUND = {"Host": "evil.example"}
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
]
BODY = b'{"name":"two","image":"disk"}'
# A form needs no question beforehand (CORS-safelisted), so that these arrive with a body.
FORM = {"Content-Type": "text/plain"}


def filled(rule: str) -> str:
    """A path of the rule: the VM `one` where it takes a VM, this very node where it takes a peer."""
    return re.sub(r"<(?:\w+:)?(\w+)>", lambda found: {"vm": "one", "port": "22"}.get(found[1], "here"), rule)


def rules(node: Node) -> tuple[list[tuple[str, str]], list[str]]:
    """Each verb and path of the URL map, and each path that serves websockets."""
    found = list(make_app(node, "http://localhost").url_map.iter_rules())
    plain = [(verb, filled(rule.rule)) for rule in found if not rule.websocket for verb in sorted(rule.methods or ())]
    return plain, [filled(rule.rule) for rule in found if rule.websocket]


async def state(api: Served) -> list[object]:
    """What a request could have changed: the VMs, and the operations that there were."""
    vms, operations = [await api.node.call(LOCAL_ADMIN, TABLE[name], {}) for name in ("list_vms", "list_operations")]
    return [[(vm.id, vm.status, vm.labels) for vm in vms], [one.id for one in operations]]


async def test_no_request_of_another_site_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path, rate=1000.0, burst=1000) as api:
        (await api.client.post("/api/vm", json=SPEC)).raise_for_status()
        plain, _ = rules(api.node)
        before = await state(api)
        wrong = []
        for verb, path in plain:
            for headers, status in [(REBOUND, 421), *((one, 403) for one in FOREIGN)]:
                answer = await api.client.request(verb, path, headers={**headers, **FORM}, content=BODY)
                protected = "frame-ancestors 'none'" in answer.headers["content-security-policy"]
                if answer.status_code != status or "access-control-allow-origin" in answer.headers or not protected:
                    wrong.append((verb, path, headers, answer.status_code))
        assert wrong == []
        assert await state(api) == before
        print(f"{len(plain)} routes, {len(plain) * (len(FOREIGN) + 1)} requests")


async def test_no_websocket_of_another_site_is_accepted(tmp_path: Path) -> None:
    async with served(tmp_path, rate=1000.0, burst=1000) as api:
        (await api.client.post("/api/vm", json={**SPEC, "start": True})).raise_for_status()
        _, sockets = rules(api.node)
        assert {path.rpartition("/")[2] for path in sockets} >= {"console", "screen", "attach"}
        wrong = []
        for path in sockets:
            for headers, status in [(REBOUND, 421), *((one, 403) for one in FOREIGN)]:
                said = await trio.to_thread.run_sync(talk, api.address, handshake(path, **headers))
                if not said.startswith(f"HTTP/1.1 {status}".encode()):
                    wrong.append((path, headers, said[:60]))
        assert wrong == []


async def test_nothing_may_be_framed(tmp_path: Path) -> None:
    async with served(tmp_path, rate=1000.0, burst=1000) as api:
        (await api.client.post("/api/vm", json=SPEC)).raise_for_status()
        plain, _ = rules(api.node)
        framed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        for path in sorted({path for verb, path in plain if verb == "GET"}):
            async with api.client.stream("GET", path, headers=framed) as answer:
                policy = answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["cross-origin-resource-policy"] == "same-origin", path
        changing = [(verb, path) for verb, path in plain if verb not in {"GET", "HEAD", "OPTIONS"}]
        for verb, path in changing:
            answer = await api.client.request(verb, path, headers=framed | FORM, content=BODY)
            assert answer.status_code == 403, (verb, path)
