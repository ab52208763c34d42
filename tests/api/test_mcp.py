"""`twinshare mcp`, asked by the SDK's own client over stdio and over HTTP; the tools and their bounds without it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.api.served import TABLE, Served, served
from twinshare.api.mcp import calls
from twinshare.api.mcp.calls import MAX_TEXT, call_tool
from twinshare.api.mcp.tools import make_tools, visible
from twinshare.api.rest_client import RESTClient
from twinshare.protocols.access import LOCAL_ADMIN, Role
from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.node import TokenRequest

sdk = pytest.importorskip("mcp")
httpx2 = pytest.importorskip("httpx2")
SPEC = {"name": "box", "image": "disk", "memory": 64, "disk_size": 1, "cpu_cores": 1, "ttl": 600}
READERS = {"list_vms", "get_vm", "health", "whoami"}
WRITERS = {"create_vm", "delete_vm", "pull_image", "exec_vm", "read_file", "write_file", "list_files"}


async def token_of(api: Served, role: Role) -> str:
    asked = TokenRequest(name=f"mcp-{role}", role=role)
    made = await api.node.call(LOCAL_ADMIN, TABLE["create_token"], {"token": asked})
    return str(made.secret)


def environment(api: Served, token: str) -> dict[str, str]:
    return {**os.environ, "TWINSHARE_API": api.url, "TWINSHARE_TOKEN": token}


@asynccontextmanager
async def over_stdio(api: Served, token: str) -> AsyncIterator[Any]:
    from mcp.client.stdio import StdioServerParameters

    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "twinshare", "mcp"], env=environment(api, token)
    )
    async with sdk.Client(parameters) as client:
        yield client


@asynccontextmanager
async def http_server(api: Served) -> AsyncIterator[str]:
    """The URL of a server that has no rights of its own: each client brings a token."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "twinshare", "mcp", "--http", "127.0.0.1:0"],
        env={**environment(api, ""), "TWINSHARE_TOKEN": "none"}, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        said = b""
        with trio.fail_after(30):
            while b"/mcp\n" not in said:
                part = await process.stderr.receive_some()
                assert part, said
                said += part
        yield said.decode().split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            await process.wait()
        process.kill()
        await process.stderr.aclose()


@asynccontextmanager
async def over_http(url: str, token: str) -> AsyncIterator[Any]:
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30) as http,
        sdk.Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def call(client: Any, name: str, **arguments: Any) -> Any:
    result = await client.call_tool(name, arguments)
    text = result.content[0].text
    assert not result.is_error, text
    return json.loads(text)


async def names(client: Any) -> set[str]:
    return {tool.name for tool in (await client.list_tools()).tools}


async def use(client: Any) -> None:
    """Make a VM, look at it and delete it."""
    made = await call(client, "create_vm", spec={**SPEC, "start": True})
    assert (made["name"], made["status"], made["ttl"]) == ("box", "running", 600)
    assert [vm["name"] for vm in await call(client, "list_vms")] == ["box"]
    done = await call(client, "exec_vm", vm="box", request={"command": ["sh", "-c", "echo hi; exit 3"]})
    assert (done["stdout"], done["exit_code"]) == ("hi\n", 3)
    with tempfile.TemporaryDirectory() as folder:
        await call(client, "write_file", vm="box", path=f"{folder}/words", text="some words", mode=0o600)
        found = await call(client, "read_file", vm="box", path=f"{folder}/words", offset=5)
        assert found == {"text": "words", "next_offset": 10}
        assert [one["name"] for one in (await call(client, "list_files", vm="box", path=folder))["files"]] == ["words"]
    refused = await client.call_tool("delete_vm", {"vm": "box"})
    assert refused.is_error
    assert "wrong_state" in refused.content[0].text
    await call(client, "delete_vm", vm="box", force=True)
    assert await call(client, "list_vms") == []


async def test_over_stdio_with_the_sdks_client(tmp_path: Path) -> None:
    async with served(tmp_path, guests="?guest_program=1") as api:
        with trio.fail_after(60):
            async with over_stdio(api, await token_of(api, Role.OPERATOR)) as client:
                found = await names(client)
                assert found >= READERS | WRITERS
                assert not found & {"create_token", "revoke_token", "invite_peer", "join_fleet", "revoke_peer"}
                await use(client)
                unknown = await client.call_tool("get_vm", {"vm": "x", "nonsense": 1})
                assert unknown.is_error
                assert "nonsense" in unknown.content[0].text
                assert (await client.call_tool("no_such_tool", {})).is_error
            async with over_stdio(api, await token_of(api, Role.VIEWER)) as client:
                found = await names(client)
                assert found >= READERS
                assert not found & WRITERS
                refused = await client.call_tool("create_vm", {"spec": SPEC})
                assert refused.is_error
                assert "forbidden" in refused.content[0].text


async def test_over_http_each_client_has_its_own_rights(tmp_path: Path) -> None:
    async with served(tmp_path, guests="?guest_program=1") as api:
        operator, viewer = await token_of(api, Role.OPERATOR), await token_of(api, Role.VIEWER)
        with trio.fail_after(60):
            async with http_server(api) as url:
                async with over_http(url, operator) as client:
                    assert await names(client) >= WRITERS
                    await use(client)
                async with over_http(url, viewer) as client:
                    assert not await names(client) & WRITERS
                async with over_http(url, "wrong") as client:
                    with pytest.raises(sdk.MCPError, match="unauthenticated"):
                        await client.list_tools()
                async with httpx2.AsyncClient(trust_env=False) as http:
                    assert (await http.post(url, json={})).status_code == 401
                    headers = {"Authorization": f"Bearer {operator}", "Host": "evil.example"}
                    assert (await http.post(url, json={}, headers=headers)).status_code == 421


def test_http_is_served_on_the_loopback_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twinshare", "mcp", "--http", "0.0.0.0:0"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"loopback" in done.stderr


async def test_a_result_is_bounded_and_a_long_operation_is_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = make_tools()
    async with served(tmp_path) as api, RESTClient(api.url) as client:
        monkeypatch.setattr(calls, "MAX_TEXT", 300)
        outcome = await call_tool(client, tools["list_images"], {})
        assert len(outcome.text) < 300 + 200
        assert "cut off" in outcome.text
        monkeypatch.undo()
        monkeypatch.setattr(calls, "WAIT", 0.0)
        outcome = await call_tool(client, tools["create_vm"], {"spec": SPEC})
        assert not outcome.is_error
        assert "wait_operation" in outcome.text
    assert MAX_TEXT == 64 << 10


@pytest.mark.parametrize("arguments", [{"vm": 5}, {}, {"vm": "a", "on": 1}, {"vm": ""}])
def test_wrong_arguments_are_refused_before_they_are_sent(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        make_tools()["get_vm"].read(arguments)


def test_what_a_role_may_not_do_is_not_listed() -> None:
    tools = make_tools().values()
    for role in Role:
        assert all(role.includes(tool.method.role) for tool in visible(tools, role))
    assert len(visible(tools, Role.VIEWER)) < len(visible(tools, Role.OPERATOR))
    for tool in tools:
        assert tool.schema["type"] == "object"
        assert ("on" in tool.schema["properties"]) is not tool.method.local
