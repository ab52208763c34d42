"""Who may come in: hosts, pages of other sites, tokens, roles, rates, and the browser's session."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.served import SPEC, Served, served
from twinshare.protocols.access import Role
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods

TABLE = all_methods(SERVICES)


async def changed(api: Served) -> bool:
    """Whether the node has a VM, as the node itself sees it."""
    return bool(list(api.node.vms.inventory.records()))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8080", 200), ("127.0.0.1", 200), ("127.0.0.1:1", 200), ("[::1]:8080", 200),
        ("pool.example", 200), ("POOL.example:443", 200), ("evil.example", 421), ("evil.example:8080", 421),
        ("localhost.evil.example", 421), ("localhost.", 421), ("127.0.0.2", 421), ("10.0.0.1", 421), ("", 421),
        ("[::2]", 421), ("localhost@evil.example", 421), ("[localhost", 200),
    ],
)  # fmt: skip
async def test_dns_rebinding(host: str, status: int, tmp_path: Path) -> None:
    """A page of evil.example whose name now points at loopback is served nothing, and changes nothing."""
    async with served(tmp_path, hosts=["pool.example"]) as api:
        answer = await api.client.get("/api/vm", headers={"host": host})
        assert answer.status_code == status
        made = await api.client.post("/api/vm", json=SPEC, headers={"host": host})
        assert made.status_code == status
        assert await changed(api) is (status == 200)
        if status == 421:
            assert made.json()["code"] == "misdirected"


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "http://localhost:1"},
    {"origin": "null"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize(
    "request_",
    [
        {"url": "/api/vm", "json": SPEC},
        {"url": "/api/vm", "content": b'{"name":"one","image":"disk"}', "headers": {"content-type": "text/plain"}},
        {"url": "/api/vm/one/start"},
        {"url": "/api/p2p/start"},
    ],
)
async def test_csrf(headers: dict[str, str], request_: dict[str, Any], tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        sent = {**request_, "headers": {**request_.get("headers", {}), **headers}}
        answer = await api.client.post(**sent)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert not await changed(api)


async def test_pages_of_our_own_and_links_from_elsewhere(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        own = {"origin": api.url, "sec-fetch-site": "same-origin"}
        assert (await api.client.post("/api/vm", json=SPEC, headers=own)).status_code == 200
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "accept": "text/html"}
        assert (await api.client.get("/", headers=link)).status_code == 200
        image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert (await api.client.get("/api/vm", headers=image)).status_code == 403


async def test_no_other_site_may_read_unless_it_is_listed(tmp_path: Path) -> None:
    async with served(tmp_path, origins=["https://board.example"]) as api:
        ours = {"origin": "https://board.example"}
        answer = await api.client.get("/api/vm", headers=ours)
        assert answer.headers["access-control-allow-origin"] == "https://board.example"
        asked = await api.client.options("/api/vm", headers=ours | {"access-control-request-method": "POST"})
        assert asked.status_code == 204
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert (await api.client.post("/api/vm", json=SPEC, headers=ours)).status_code == 200
        other = await api.client.get("/api/vm", headers={"origin": "https://other.example"})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers


async def test_tokens(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        assert (await api.client.get("/api/vm")).status_code == 401
        made = await api.node.tokens.create(TokenRequest(name="ci", role=Role.OPERATOR))
        headers = {"authorization": f"Bearer {made.secret}"}
        assert (await api.client.get("/api/vm", headers=headers)).status_code == 200
        assert (await api.client.get("/api/vm", headers={"authorization": f"bearer  {made.secret}"})).status_code == 200
        for wrong in (f"Bearer {made.secret}x", f"Basic {made.secret}", "Bearer", str(made.secret)):
            refused = await api.client.get("/api/vm", headers={"authorization": wrong})
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        await api.node.tokens.revoke("ci")
        assert (await api.client.get("/api/vm", headers=headers)).status_code == 401


async def test_a_wrong_token_is_refused_even_where_none_is_needed(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        assert (await api.client.get("/api/vm", headers={"authorization": "Bearer x"})).status_code == 401


PROXY_FIELDS = [
    "x-forwarded-for",
    "forwarded",
    "via",
    "x-real-ip",
    "x-forwarded-host",
    "x-forwarded-proto",
    "cf-connecting-ip",
    "cf-ray",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "fastly-client-ip",
    "x-original-host",
    "x-envoy-external-address",
    "x-amzn-trace-id",
    "x-azure-clientip",
    "fly-client-ip",
    "proxy-connection",
    "x-forwarded-client-cert",
    "forwarded-for",
    "x-remote-addr",
    "cdn-loop",
]


async def test_what_a_proxy_brings_is_not_the_proxys_own(tmp_path: Path) -> None:
    async with served(tmp_path, rate=1000.0, burst=1000) as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        for name in PROXY_FIELDS:
            answer = await api.client.get("/api/vm", headers={name: "203.0.113.7"})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), name
            headers = {name: "203.0.113.7", "authorization": f"Bearer {made.secret}"}
            assert (await api.client.get("/api/vm", headers=headers)).status_code == 200
        plain = {"x-my-own": "1", "accept-encoding": "gzip", "traceparent": "00-x", "x-requested-with": "a"}
        assert (await api.client.get("/api/vm", headers=plain)).status_code == 200


async def test_strangers_learn_nothing_of_what_there_is(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        known = ("/", "/api/vm/one", "/metrics", "/api/openapi.json", "/swagger-ui", "/api/events", "/web/main.js")
        for path in (*known, "/nope", "/api/nope"):
            answer = await api.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path


@pytest.mark.parametrize("role", list(Role))
async def test_every_operation_asks_for_its_role(role: Role, tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=role))
        headers = {"authorization": f"Bearer {made.secret}", "content-type": "application/json"}
        message = {"peer_id": "p", "message_type": "HELLO", "data": {}}
        bodies = {
            "create_vm": SPEC,
            "add_forward": {"host_port": 0, "guest_port": 80},
            "create_token": {"name": "y"},
            "send_message": message,
            "join_fleet": {"ticket": "t"},
            "capture_image": {"vm": "vm", "name": "x"},
            "pull_image": {"image": "nowhere-known"},
            "push_image": {"image": "nowhere-known", "target": "nowhere"},
        }
        for method in TABLE.values():
            if method.name == "build_tiny" and role.includes(method.role):
                continue  # would build one, from the distribution's packages
            path = "/api" + method.path.replace("<host_port>", "8080").replace("<", "").replace(">", "")
            body = bodies.get(method.name, {}) if method.verb in {"POST", "PATCH", "DELETE"} and method.body else None
            answer = await api.client.request(method.verb, path, json=body, headers=headers, timeout=5)
            if role.includes(method.role):
                assert answer.status_code not in {401, 403} or answer.json()["code"] != "forbidden", method.name
            else:
                assert answer.status_code == 403, (method.name, answer.text)
                assert answer.json()["details"]["role_needed"] == method.role
                assert method.role in answer.json()["error"]


async def test_who_may_not_call_does_not_learn_how(tmp_path: Path) -> None:
    """The role comes before the body, the query and the path's names are looked at, in both dialects, near and far."""
    async with served(tmp_path, auth="token", rate=1e4, burst=1000) as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        headers = {"authorization": f"Bearer {made.secret}", "content-type": "application/json"}
        asked = 0
        for root in ("/api", "/api/v1"):
            document = await api.get(f"{root}/openapi.json", headers=headers)
            for path, verbs in document["paths"].items():
                for verb, operation in verbs.items():
                    if operation.get("x-role") in {None, Role.VIEWER}:
                        continue
                    wrong = re.sub("{[^}]*}", "%20", path) + "?nope=1"
                    answer = await api.client.request(verb, wrong, content=b"{", headers=headers)
                    assert answer.status_code == 403, (verb, path, answer.text)
                    assert operation["x-role"] in answer.text, (verb, path, answer.text)
                    asked += 1
        assert asked > 50
        assert not await changed(api)


async def test_a_viewer_may_not_upload(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        headers = {"authorization": f"Bearer {made.secret}", "content-type": "application/octet-stream"}
        answer = await api.client.post("/api/image/import?name=x", content=bytes(512), headers=headers)
        assert answer.status_code == 403


async def test_rates(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token", rate=1.0, burst=5) as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        headers = {"authorization": f"Bearer {made.secret}"}
        answers = [await api.client.get("/api/vm", headers=headers) for _ in range(8)]
        assert [answer.status_code for answer in answers][:5] == [200] * 5
        assert answers[-1].status_code == 429
        assert answers[-1].json()["code"] == "rate_limited"
        assert int(answers[-1].headers["retry-after"]) >= 1


async def test_guessing_tokens_is_dear(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token", rate=1.0, burst=100) as api:
        answers = [await api.client.get("/api/vm", headers={"authorization": f"Bearer {n}"}) for n in range(10)]
        assert [answer.status_code for answer in answers].count(401) == 5
        assert answers[-1].status_code == 429


async def test_the_owner_has_a_larger_share(tmp_path: Path) -> None:
    async with served(tmp_path, rate=1.0, burst=5) as api:
        assert {(await api.client.get("/api/vm")).status_code for _ in range(40)} == {200}


async def test_the_owners_share_is_fifty_fold_and_no_more(tmp_path: Path) -> None:
    async with served(tmp_path, rate=0.001, burst=2) as api:
        answers = [(await api.client.get("/api/health")).status_code for _ in range(102)]
        assert answers == [200] * 100 + [429] * 2


async def test_a_link_opens_the_page_once(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token") as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.OPERATOR))
        headers = {"authorization": f"Bearer {made.secret}"}
        link = (await api.client.post("/api/session", headers=headers)).json()["link"]
        async with httpx.AsyncClient(base_url=api.url, trust_env=False) as browser:
            entered = await browser.get(link, headers={"sec-fetch-site": "none"})
            assert (entered.status_code, entered.headers["location"]) == (303, "/")
            cookie = entered.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=Strict" in cookie
            assert (await browser.get("/api/vm")).status_code == 200
            assert (await browser.post("/api/vm", json=SPEC, headers={"origin": api.url})).status_code == 200
            foreign = await browser.post("/api/vm/one/start", headers={"origin": "https://evil.example"})
            assert foreign.status_code == 403
            assert (await browser.get("/api/tokens")).status_code == 403
            assert (await api.client.get(link)).status_code == 401
            await api.node.tokens.revoke("x")
            assert (await browser.get("/api/vm")).status_code == 401


async def test_protection_is_on_every_answer(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        for path in ("/api/vm", "/nope", "/swagger-ui", "/web/main.js"):
            headers = (await api.client.get(path)).headers
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
