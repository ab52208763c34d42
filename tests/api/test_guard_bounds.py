"""The bounds that the guard keeps: headers that decide, the length of a path, what each caller may ask."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.api.served import served
from twinshare.api.rest.guard import MAX_PATH, _host_name
from twinshare.protocols.access import Role
from twinshare.protocols.node import TokenRequest


@pytest.mark.parametrize("name", ["authorization", "origin", "idempotency-key"])
async def test_a_header_that_decides_comes_once(name: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        answer = await api.client.get("/api/vm", headers=[(name, "a"), (name, "b")])
        assert answer.status_code == 400
        assert "twice" in answer.json()["error"]


async def test_a_path_is_bounded_and_utf_8(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        longest = "/api/vm/" + "a" * (MAX_PATH - len("/api/vm/"))
        assert f"at most {MAX_PATH}" not in (await api.client.get(longest)).json()["error"]
        for path, status, what in (
            (longest + "a", 400, f"at most {MAX_PATH} bytes"),
            ("/api/vm/%ff", 400, "not UTF-8"),
        ):
            answer = await api.client.get(path)
            assert (answer.status_code, what in answer.json()["error"]) == (status, True)
        host, port = api.address
        raw = f"GET //api/vm HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
        assert (await trio.to_thread.run_sync(api.raw, raw)).startswith(b"HTTP/1.1 404")


async def test_a_token_used_on_this_machine_has_the_share_of_a_token(tmp_path: Path) -> None:
    """The owner's fifty-fold share is the owner's: not that of whoever has a token and runs here."""
    async with served(tmp_path, rate=0.001, burst=2) as api:
        made = await api.node.tokens.create(TokenRequest(name="x", role=Role.VIEWER))
        headers = {"authorization": f"Bearer {made.secret}"}
        answers = [(await api.client.get("/api/vm", headers=headers)).status_code for _ in range(3)]
        assert answers == [200, 200, 429]
        assert (await api.client.get("/api/vm")).status_code == 200


async def test_strangers_have_no_more_than_the_rate(tmp_path: Path) -> None:
    async with served(tmp_path, auth="token", rate=0.001, burst=2) as api:
        assert [(await api.client.get("/api/vm")).status_code for _ in range(3)] == [401, 401, 429]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"LocalHost:80", "localhost"), (b"[::1]:80", "::1"), (b"::1", "::1"), (b"a:b:c", "a:b:c"), (b"", ""),
    ],
)  # fmt: skip
def test_the_name_in_a_host_header(host: bytes, name: str) -> None:
    assert _host_name(host) == name
