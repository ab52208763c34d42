"""Where the client may go: not inside this network unless a registry is listed, whoever leads it there."""

from __future__ import annotations

import httpx
import pytest

from tests.images.registry.servers import Exchange, no_pause, scripted
from twinshare.agent.images.registry import transport
from twinshare.agent.images.registry.client import Repository, once, open_registry_client
from twinshare.agent.images.registry.manifest import Descriptor, sha256
from twinshare.agent.images.registry.proxies import ProxyRules
from twinshare.protocols.errors import AddressRefused, RegistryFailed

BODY = bytes(range(256)) * 64
BLOB = Descriptor(media_type="x", digest=sha256(BODY), size=len(BODY))


async def give(exchange: Exchange) -> None:
    await exchange.answer(200, BODY)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost", "10.1.2.3", "[::1]:443", "192.168.0.1", "169.254.169.254"]
)
async def test_private_hosts_must_be_listed(host: str) -> None:
    async with open_registry_client([], no_pause) as client:
        with pytest.raises(AddressRefused, match="registries"):
            await client.manifest(Repository(host, "a"), "latest")


async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1", "10.0.0.1", "::1"]

    monkeypatch.setattr(transport, "resolve", inside)
    async with open_registry_client([], no_pause) as client:
        with pytest.raises(AddressRefused):
            await client.manifest(Repository("registry.example", "a"), "latest")


async def test_a_registry_that_sends_an_upload_inside_has_failed_itself() -> None:
    async def handler(exchange: Exchange) -> None:
        if exchange.method == "POST":
            await exchange.answer(202, location="https://127.0.0.1:1/upload")
        else:
            await exchange.answer(404)

    async with scripted(handler) as server, open_registry_client([server], no_pause) as client:
        with pytest.raises(RegistryFailed, match="inside this network"):
            await client.put_blob(Repository(server.host, "a"), BLOB.digest, len(BODY), once(BODY))


async def test_a_name_server_is_asked_once_for_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers = iter([["127.0.0.9", "127.0.0.1"]])

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    monkeypatch.setattr(transport, "resolve", resolve)
    tried: list[str] = []
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def sent(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        tried.append(request.url.host)
        return await send(self, request)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", sent)
    async with scripted(give) as server, open_registry_client([server], no_pause) as client:
        for _ in range(3):
            assert await client.blob(Repository(server.host, "a"), BLOB, len(BODY)) == BODY
        assert asked == ["127.0.0.1"]
        assert tried == ["127.0.0.9", "127.0.0.1", "127.0.0.1", "127.0.0.1"]
    # What cannot be reached is not tried first again; where nobody listens any more, the name is asked for anew.
    guarded = transport.GuardedTransport([server], ProxyRules({}))
    request = httpx.Request("GET", f"http://{server.host}/")
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])
    for _ in range(2):
        with pytest.raises(httpx.ConnectError):
            await guarded.handle_async_request(request)
    assert len(asked) == 3
    await guarded.aclose()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::808:808", True), ("2002:808:808::1", True),
        ("127.0.0.1", False), ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.1.1", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False),  # noqa: S104 - not bound
        ("::", False), ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:10.0.0.1", False), ("ff02::1", False),
        ("64:ff9b::a00:1", False), ("2002:a00:1::1", False), ("garbage", False),
        ("192.0.0.192", False), ("168.63.129.16", False), ("192.88.99.1", False), ("fd20:ce::254", False),
        ("::127.0.0.1", False), ("::ffff:0:127.0.0.1", False), ("64:ff9b:1::7f00:1", False), ("fec0::1", False),
        ("5f00::1", False), ("3fff::1", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert transport.is_public(address) is public
