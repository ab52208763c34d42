"""A REST request that is under way ends within a second of the token that it came with, here and through a peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.api.served import SPEC, Served, served, served_in_a_fleet
from tests.stopwatch import within
from twinshare.agent.hypervisor.memory import MemoryHypervisor
from twinshare.agent.node import Node
from twinshare.agent.vm.reads import VmReads
from twinshare.protocols.access import Role
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.operation import OperationState
from twinshare.protocols.vm import Vm

WITHIN = 1.0
Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


async def token(node: Node, **more: Any) -> dict[str, str]:
    made = await node.tokens.create(TokenRequest(name="ci", role=Role.ADMIN, **more))
    return {"authorization": f"Bearer {made.secret}"}


class Asked:
    """One request with a token, in a task of its own."""

    def __init__(self, api: Served, headers: dict[str, str], ask: Ask) -> None:
        self._api, self._headers, self._ask = api, headers, ask
        self.status = 0
        self.ended = trio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(
            base_url=self._api.url, timeout=30, trust_env=False, headers=self._headers
        ) as client:
            self.status = (await self._ask(client)).status_code
        self.ended.set()


async def answer_to_upload(api: Served, headers: dict[str, str], sent: trio.Event) -> bytes:
    """The first line that answers an upload whose client never stops sending."""
    lines = ["POST /api/image/import?name=mine HTTP/1.1", f"host: {api.address[0]}"]
    lines += [f"authorization: {headers['authorization']}", "content-type: application/octet-stream"]
    async with await trio.open_tcp_stream(*api.address) as stream, trio.open_nursery() as nursery:
        await stream.send_all("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())

        async def send() -> None:
            while True:
                await stream.send_all(b"4\r\nabcd\r\n")
                sent.set()
                await trio.sleep(0.02)

        nursery.start_soon(send)
        answer = bytes(await stream.receive_some(4096))
        nursery.cancel_scope.cancel()
    return answer.partition(b"\r\n")[0]


def get(path: str) -> Ask:
    return lambda client: client.get(path)


@pytest.mark.parametrize("root", ["/api", "/api/remote/far"])
async def test_a_read_ends_with_its_token(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = trio.Event(), trio.Event()

    async def list_vms(reads: VmReads) -> list[Vm]:
        if not reads._caller.principal.endswith("token:ci"):
            return []
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with served_in_a_fleet(tmp_path) as (api, _), trio.open_nursery() as nursery:
        headers = await token(api.node)
        await api.client.get("/api/remote/far/vm")
        monkeypatch.setattr(VmReads, "list_vms", list_vms)
        asked = Asked(api, headers, get(f"{root}/vm"))
        nursery.start_soon(asked.run)
        with trio.fail_after(60):
            await begun.wait()
        await api.node.tokens.revoke("ci")
        with trio.fail_after(WITHIN):
            await asked.ended.wait()
            await cancelled.wait()
        assert asked.status == 401


@pytest.mark.parametrize("root", ["/api", "/api/remote/far"])
async def test_a_wait_ends_with_its_token_and_the_operation_goes_on(root: str, tmp_path: Path) -> None:
    async with served_in_a_fleet(tmp_path) as (api, far), trio.open_nursery() as nursery:
        headers = await token(api.node)
        owner = api.node if root == "/api" else far
        hypervisor = owner.vms.hypervisor
        assert isinstance(hypervisor, MemoryHypervisor)
        hypervisor.behaviour.delay = 0.5
        body, detached = {**SPEC, "start": True}, {"prefer": "respond-async"}
        create = Asked(api, headers, lambda client: client.post(f"{root}/vm", json={**body, "name": "first"}))
        second = await api.client.post(f"{root}/vm", json={**body, "name": "second"}, headers=headers | detached)
        wait = Asked(api, headers, get(f"{root}/operations/{second.json()['id']}/wait?timeout=60"))
        nursery.start_soon(create.run)
        nursery.start_soon(wait.run)
        with trio.fail_after(60):
            while len(await owner.operations.list(OperationState.RUNNING)) < 2:
                await trio.sleep(0.01)
        await api.node.tokens.revoke("ci")
        with trio.fail_after(WITHIN):
            await create.ended.wait()
            await wait.ended.wait()
        assert (create.status, wait.status) == (401, 401)
        with within(10):
            while {vm["status"] for vm in (await api.get(f"{root}/vm"))["vms"]} != {"running"}:
                await trio.sleep(0.05)
        assert {vm["name"] for vm in (await api.get(f"{root}/vm"))["vms"]} == {"first", "second"}


async def test_an_upload_ends_with_its_token(tmp_path: Path) -> None:
    async with served(tmp_path) as api, trio.open_nursery() as nursery:
        sent = trio.Event()

        async def revoke() -> None:
            await sent.wait()
            await trio.sleep(0.1)
            await api.node.tokens.revoke("ci")

        headers = await token(api.node)
        nursery.start_soon(revoke)
        with trio.fail_after(WITHIN + 1):
            assert b" 401 " in await answer_to_upload(api, headers, sent)
        assert [image["name"] for image in (await api.get("/api/image"))["images"]] == ["disk"]


async def test_a_request_ends_when_its_token_expires(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        headers = await token(api.node, expires_in=1)
        with trio.fail_after(1 + WITHIN):
            assert b" 401 " in await answer_to_upload(api, headers, trio.Event())


async def test_a_token_that_revokes_itself_is_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        headers = await token(api.node)
        revoked = await api.client.delete("/api/tokens/ci", headers=headers)
        assert (revoked.status_code, revoked.json()["name"]) == (200, "ci")
        assert (await api.client.get("/api/vm", headers=headers)).status_code == 401
