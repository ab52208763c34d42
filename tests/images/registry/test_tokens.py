"""Debian's docker-registry behind a token server: who may do what, with which tokens, how often one is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images.registry.certificates import elliptic
from tests.images.registry.servers import USER, Settings, docker_registry, needs_registry
from tests.images.registry.test_artifact import Counting, a_disk, add, node, pull, push
from tests.images.registry.tokens import TokenServer, token_server
from twinshare.agent.images.port import Origin
from twinshare.agent.images.registry import packs
from twinshare.agent.images.store import DiskImageStore
from twinshare.protocols.errors import RegistryFailed
from twinshare.protocols.reference import parse_reference

pytestmark = [needs_registry, pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")]


@pytest.fixture(autouse=True)
def _small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_SIZE", 1 << 20)


@asynccontextmanager
async def guarded(tmp_path: Path, algorithm: str) -> AsyncIterator[tuple[TokenServer, Settings, Settings]]:
    """A token server, a registry that believes it, and the registry's settings for one who has no login."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(token_server(tmp_path / "tokens", algorithm))
        registry = await stack.enter_async_context(docker_registry(tmp_path / "registry", auth=server.auth))
        yield server, registry, replace(registry, username="", password_file="")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_a_disk_goes_through_a_registry_that_wants_tokens(tmp_path: Path, algorithm: str) -> None:
    disk = a_disk()
    async with AsyncExitStack() as stack:
        server, registry, stranger = await stack.enter_async_context(guarded(tmp_path, algorithm))

        async def open_node(name: str, known: Settings) -> tuple[DiskImageStore, Counting]:
            return await stack.enter_async_context(node(tmp_path / name, known, server.settings))

        here, there, anybody = [
            await open_node(*who) for who in (("here", registry), ("there", registry), ("anybody", stranger))
        ]
        image = await add(here[0], "big", disk)
        for name in ("org/big", "public/big"):
            ref = f"{registry.host}/{name}:v1"
            digest = await push(*here, "big", ref)
            got = await pull(*there, ref)
            assert (got.digest, got.manifest) == (image.digest, digest)
            await here[0].repository.rename(parse_reference(ref), image.digest, Origin("push", digest))
        assert there[0].base_path(image.digest).read_bytes() == disk
        # One token for each repository and what is done there, not one for each of the many requests; and one for
        # both, so that the second has the packs of the first mounted.
        pulls = {f"repository:{name}:pull" for name in ("org/big", "public/big")}
        asked = [scope for _, scope in server.asked]
        assert len(asked) == 5
        assert {*pulls, *(f"{scope},push" for scope in pulls)} < set(asked)
        assert any(len(scope.split()) == 2 for scope in asked)
        assert {user for user, _ in server.asked} == {USER}
        server.asked.clear()
        assert (await pull(*anybody, f"{registry.host}/public/big:v1")).digest == image.digest
        assert {user for user, _ in server.asked} == {""}
        with pytest.raises(RegistryFailed, match="refuses access"):
            await pull(*anybody, f"{registry.host}/org/big:v1")
        with pytest.raises(RegistryFailed, match="refuses access"):
            await push(*anybody, image.digest, f"{registry.host}/public/big:v2")


async def test_tokens_that_the_registry_does_not_believe_are_no_endless_loop(tmp_path: Path) -> None:
    async with (
        guarded(tmp_path, "ES256") as (server, registry, _),
        node(tmp_path / "n", registry, server.settings) as n,
    ):
        await add(n[0], "big", a_disk())
        ref = f"{registry.host}/org/big:v1"
        await push(*n, "big", ref)
        server.asked.clear()
        server.key = elliptic()
        async with node(tmp_path / "other", registry, server.settings) as other:
            with pytest.raises(RegistryFailed, match="refuses access"):
                await pull(*other, ref)
            assert len(server.asked) == 1
            assert await other[0].list_images() == []


async def test_a_token_that_has_ended_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry forgives a minute: a token is given here that ended before."""
    async with (
        guarded(tmp_path, "ES256") as (server, registry, _),
        node(tmp_path / "n", registry, server.settings) as n,
    ):
        await add(n[0], "big", a_disk())
        ref = f"{registry.host}/org/big:v1"
        await push(*n, "big", ref)
        server.asked.clear()
        logins = n[1].web._logins
        for known in logins._headers:
            logins._headers[known] = f"Bearer {server.token(USER, known[1], lifetime=-120)}"
        await push(*n, "big", f"{registry.host}/org/big:v2")
        assert len(server.asked) == 1


async def test_a_wrong_password_is_said(tmp_path: Path) -> None:
    async with guarded(tmp_path, "ES256") as (server, registry, _):
        mistaken = replace(registry, password_file=str(tmp_path / "registry/htpasswd"))
        async with node(tmp_path / "node", mistaken, server.settings) as here:
            await add(here[0], "big", a_disk())
            with pytest.raises(RegistryFailed, match="refuses the login"):
                await push(*here, "big", f"{registry.host}/org/big:v1")
