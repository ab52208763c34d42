"""Behind a proxy: registries and addresses are reached through it; what lies inside this network is still refused."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.images.registry.proxy_server import open_proxy
from tests.images.registry.servers import Settings, docker_registry, needs_registry, no_pause
from tests.images.stores import disk_store
from twinshare.agent.images.contract_samples import pieces, quiet, raw_disk
from twinshare.agent.images.exchange import DiskImageExchange, open_image_exchange
from twinshare.agent.images.registry import transport
from twinshare.agent.images.registry.proxies import ProxyRules
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import AddressRefused, RegistryFailed

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")


@asynccontextmanager
async def node(
    folder: Path, settings: Sequence[Settings], proxy: str = ""
) -> AsyncIterator[tuple[DiskImageStore, DiskImageExchange]]:
    async with (
        disk_store(folder) as store,
        open_image_exchange(store, registries=settings, sleep=no_pause, proxy=proxy) as exchange,
    ):
        yield store, exchange


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def unknown(host: str, _port: int) -> list[str]:
        if host == "inside.test":
            return ["10.0.0.7"]
        if not host.endswith(".test"):
            return [host]
        raise httpx.ConnectError(f"the host {host} is not known")

    monkeypatch.setattr(transport, "resolve", unknown)


@needs_registry
@pytest.mark.parametrize("tls", [True, False], ids=["CONNECT", "plain http"])
@pytest.mark.parametrize("by", ["configuration", "environment"])
async def test_an_image_goes_by_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool, by: str) -> None:
    async with docker_registry(tmp_path / "registry", tls=tls) as registry, open_proxy(_port(registry)) as proxy:
        if by == "environment":
            monkeypatch.setenv("HTTPS_PROXY" if tls else "http_proxy", proxy.url)
        named = Settings("registry.test", insecure=not tls, ca_file=registry.ca_file)
        configured = proxy.url if by == "configuration" else ""
        async with node(tmp_path / "here", [named], configured) as (store, exchange):
            image = await store.add_image("disk", pieces(raw_disk(1)), report=quiet)
            await exchange.push_image("disk", "registry.test/org/disk:1", report=quiet)
        async with node(tmp_path / "there", [named], configured) as (store, exchange):
            got = await exchange.pull_image("registry.test/org/disk:1", report=quiet)
            assert got.digest == image.digest
        assert all("registry.test" in name for name in proxy.asked)
        secret = base64.b64encode(b"alice:wonder@land").decode()
        assert proxy.login
        assert all(line.endswith(f"Basic {secret}") for line in proxy.login)


def _port(registry: Settings) -> int:
    return int(registry.host.rpartition(":")[2])


async def test_what_lies_inside_is_refused_and_never_asked_of_the_proxy(tmp_path: Path) -> None:
    async with open_proxy(1) as proxy, node(tmp_path, [], proxy.url) as (_, exchange):
        for host in ("10.1.2.3", "inside.test", "169.254.169.254", "[fd00::1]"):
            with pytest.raises(AddressRefused):
                await exchange.pull_image(f"https://{host}/disk.img", report=quiet, sha256="0" * 64, name="disk")
        assert proxy.asked == []


async def test_a_proxy_that_refuses_or_is_away_is_named(tmp_path: Path) -> None:
    async with open_proxy(1) as proxy:
        proxy.refuse = True
        async with node(tmp_path / "a", [], proxy.url) as (_, exchange):
            with pytest.raises(RegistryFailed, match=r"the proxy 127.0.0.1 refuses: 403 not from here"):
                await exchange.pull_image("registry.test/a/b", report=quiet)
        assert set(proxy.asked) == {"registry.test:443"}
    async with node(tmp_path / "b", [], "http://127.0.0.1:1") as (_, exchange):
        with pytest.raises(RegistryFailed, match="by the proxy"):
            await exchange.pull_image("registry.test/a/b", report=quiet)
    async with node(tmp_path / "c", [], "socks5://127.0.0.1:1") as (_, exchange):
        with pytest.raises(RegistryFailed, match=r"images\.proxy"):
            await exchange.pull_image("registry.test/a/b", report=quiet)


RULES = ProxyRules({"https": "proxy:3128"}, ".example.com, 192.0.2.0/24 *.test other:8443,[2001:db8::1]:443")


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        ("https://registry.io", False),
        ("http://registry.io", True),
        ("https://example.com", True),
        ("https://a.example.com", True),
        ("https://notexample.com", False),
        ("https://192.0.2.9:5000", True),
        ("https://192.0.3.9", False),
        ("https://a.test", True),
        ("https://other", False),
        ("https://other:8443", True),
        ("https://[2001:db8::1]", True),
        ("https://127.0.0.1:5000", True),
        ("https://localhost", True),
    ],
)
def test_no_proxy(url: str, direct: bool) -> None:
    assert (RULES.proxy_for(httpx.URL(url)) is None) is direct


def test_the_configuration_stands_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://env:1")
    monkeypatch.setenv("NO_PROXY", "a.io")
    url = httpx.URL("https://b.io")
    assert str(ProxyRules.read("").proxy_for(url)) == "http://env:1"
    assert str(ProxyRules.read("http://own:2").proxy_for(url)) == "http://own:2"
    assert ProxyRules.read("http://own:2").proxy_for(httpx.URL("https://a.io")) is None
    assert ProxyRules.read("direct").proxy_for(url) is None
